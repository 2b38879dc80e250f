"""What no tensor tells survives every layout: heads, target, normalisation, image size, names of classes."""

import json
from dataclasses import replace

import pytest

from maejax.config import recipe, with_flags
from maejax.errors import WeightsError
from maejax.tasks.transfer import with_facts_of_file
from maejax.weights import files, native, torch_names
from maejax.weights.weights import head_count

OWN = {"heads": 4, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "gelu": "tanh"}
PLACES = {"maejax": "w.safetensors", "timm": "t.safetensors", "original": "o.msgpack", "hf": "hf"}


@pytest.mark.parametrize("layout", PLACES)
@pytest.mark.parametrize("kind", ["mae", "cls"])
def test_a_file_of_any_layout_says_what_its_tensors_cannot(weights, tmp_path, layout, kind):
    made = weights(kind, **OWN | ({"image_size": (16, 16)} if layout == "hf" else {}))
    if kind == "mae":
        made = replace(made, config=replace(made.config, decoder=replace(made.config.decoder, gelu="tanh")))
    else:
        made = replace(made, classes=("ant", "bee", "cat", "dog", "elk"))
    files.write(made, tmp_path / PLACES[layout], layout)
    if kind == "cls":
        assert getattr(files.load(tmp_path / PLACES[layout]), "classes", ()) == made.classes
    back = files.read(tmp_path / PLACES[layout])
    assert back.config.encoder == replace(made.config.encoder, posemb=back.config.encoder.posemb)
    assert not any("heads" in notice or "targets" in notice for notice in back.notices)
    assert back.classes == made.classes
    if kind == "mae" and layout != "timm":  # timm has no decoder
        assert (back.config.decoder.heads, back.config.norm_pix_loss) == (2, True)
        assert back.config.mask_ratio == made.config.mask_ratio


def test_a_statement_of_another_model_is_refused(weights, tmp_path):
    for name, heads in (("a", 4), ("b", 4)):
        files.write(
            weights("mae", heads=heads, dim=32 if name == "a" else 64), tmp_path / f"{name}.msgpack", "original"
        )
    (tmp_path / "a.msgpack.json").replace(tmp_path / "b.msgpack.json")
    with pytest.raises(WeightsError, match=r"b\.msgpack is not the model that b\.msgpack\.json .* dim differ"):
        files.read(tmp_path / "b.msgpack")
    (tmp_path / "b.msgpack.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"b\.msgpack\.json describes its model in a way"):
        files.read(tmp_path / "b.msgpack")


@pytest.mark.parametrize(("dim", "heads"), [(192, 3), (768, 12), (1024, 16), (1280, 16), (1664, 16)])
def test_unstated_heads_are_those_of_the_published_vits(dim, heads):
    assert head_count(dim, None) == (heads, f"the number of heads is not in the file; {heads} assumed (--heads)")
    assert head_count(dim, 8) == (8, "")


def test_normalisation_of_hugging_face_is_read(weights, tmp_path):
    files.write(weights("encoder"), tmp_path / "hf", "hf")
    card = tmp_path / "hf" / "preprocessor_config.json"
    for content, mean in (
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, (0.5,) * 3),
        ({"do_normalize": False}, (0.0,) * 3),
        ({}, (0.485, 0.456, 0.406)),
    ):
        card.write_text(json.dumps(content))
        assert files.read(tmp_path / "hf").config.encoder.mean == mean
    card.write_text(json.dumps({"image_mean": [0.5], "image_std": [0.5]}))
    with pytest.raises(WeightsError, match=r"preprocessor_config\.json has not one mean"):
        files.read(tmp_path / "hf")


def test_a_file_without_a_statement_gives_its_size_whatever_the_flags_for_heads(weights, tmp_path):
    state, _ = torch_names.to_timm(weights("encoder", image_size=(16, 16), dim=128))
    native.write_safetensors(state, tmp_path / "t.safetensors")
    config = with_flags(recipe("finetune"), pretrained_ckpt=str(tmp_path / "t.safetensors"))  # 12 heads, 224 pixels
    changed, lines = with_facts_of_file(config, ())
    assert changed.image_shape == (16, 16) and lines == ["--image-size 16x16, as the file says"]
    kept, lines = with_facts_of_file(config, {"image_size"})
    assert kept.image_shape == (224, 224) and lines == ["positions are interpolated from images of 16x16 to 224"]
