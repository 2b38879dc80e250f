"""What no tensor tells survives every layout: heads, target, normalisation, image size, names of classes."""

import json
from dataclasses import replace

import pytest

from maejax.config import with_flags
from maejax.errors import WeightsError
from maejax.recipes import recipe
from maejax.tasks.transfer import with_facts_of_file
from maejax.weights import files, native, torch_export
from maejax.weights.pretrained import fetch_pretrained
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


def test_positions_tell_their_grid_or_are_left_alone_where_they_fit(weights, tmp_path, maejax):
    for posemb, said in (("sincos2d", False), ("learnable", True)):
        state, _ = torch_export.to_timm(weights("encoder", posemb, image_size=(8, 32)))  # a grid of 2 x 8
        native.write_safetensors(state, tmp_path / f"{posemb}.safetensors")
        found = files.read(tmp_path / f"{posemb}.safetensors")
        assert found.config.encoder.image_size == ((16, 16) if said else (8, 32))
        assert any("the image size is not in the file; 16x16 assumed" in notice for notice in found.notices) == said
        fitted, _ = fetch_pretrained(str(tmp_path / f"{posemb}.safetensors"), (8, 32), 3)
        assert (fitted.arrays["encoder.positions"] == found.arrays["encoder.positions"]).all()
        assert fitted.config.encoder.image_size == (8, 32)
        code, printed = maejax("inspect", tmp_path / f"{posemb}.safetensors", "--image-size", "8x32", "--json")
        assert code == 0 and json.loads(printed)["image_size"] == [8, 32], printed
    assert "says 8x32; leave it out" in maejax("inspect", tmp_path / "sincos2d.safetensors", "--image-size", "16")[1]


def test_timms_card_is_obeyed(weights, tmp_path):
    made = weights("cls", image_size=(16, 16))
    native.write_safetensors(torch_export.to_timm(made)[0], tmp_path / "model.safetensors")
    assumed = files.read(tmp_path / "model.safetensors")
    assert assumed.config.pooling == "cls" and any("pooling before its head" in notice for notice in assumed.notices)
    names = ["ant", "bee", "cat", "dog", "elk"]
    images = {"input_size": [3, 16, 16], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "label_names": names}
    for pool, pooling in (("avg", "avg"), ("token", "cls")):
        card = {"architecture": "vit_tiny_patch16_224", "global_pool": pool, "pretrained_cfg": images}
        (tmp_path / "config.json").write_text(json.dumps(card))
        for path in (tmp_path / "model.safetensors", tmp_path):
            found = files.read(path)
            assert (found.config.pooling, found.classes) == (pooling, tuple(names))
            assert (found.config.encoder.mean, found.config.encoder.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
            assert not any("pooling" in notice or "image size" in notice for notice in found.notices)


def test_a_file_without_a_statement_gives_its_size_whatever_the_flags_for_heads(weights, tmp_path):
    state, _ = torch_export.to_timm(weights("encoder", image_size=(16, 16), dim=128))
    native.write_safetensors(state, tmp_path / "t.safetensors")
    config = with_flags(recipe("finetune"), pretrained_ckpt=str(tmp_path / "t.safetensors"))  # 12 heads, 224 pixels
    changed, lines = with_facts_of_file(config, ())
    assert changed.image_shape == (16, 16) and changed.encoder.posemb == "learnable"
    trained = "--posemb learnable: fine-tuning trains the positions of the file, as the authors do"
    sizes = ["--image-size 16x16", "--patch-size 4", "--layers 2", "--dim 128", "--heads 2"]
    assert sorted(lines[:5]) == sorted(f"{size}, as the file says" for size in sizes)
    assumed = "note: the number of heads is not in the file; 2 assumed (--heads)"
    images = (
        "note: how images were normalised is not in the file; --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 assumed"
    )
    assert lines[5:] == [assumed, images, trained]
    kept, lines = with_facts_of_file(config, {"image_size", "posemb", "dim"})
    assert kept.image_shape == (224, 224) and lines[-1:] == ["positions are interpolated from images of 16x16 to 224"]
    assert (kept.encoder.posemb, kept.encoder.heads, kept.encoder.dim) == ("sincos2d", 2, 768)


def test_an_unstated_normalisation_is_said_and_given(maejax, weights, tmp_path):
    """In timm's and transformers' layouts; a flag against what a file says is refused."""
    made = weights("encoder", "learnable", image_size=(16, 16))
    native.write_safetensors(torch_export.to_timm(made)[0], tmp_path / "t.safetensors")
    files.write(made, tmp_path / "hf", "hf")
    (tmp_path / "hf/preprocessor_config.json").unlink()
    half = ["--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5]
    for path in (tmp_path / "t.safetensors", tmp_path / "hf"):
        code, printed = maejax("inspect", path)
        assert code == 0 and "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 assumed" in " ".join(printed.split())
        code, printed = maejax("convert", path, "own.safetensors", *half)
        assert code == 0 and "normalised" not in printed, printed
        assert files.read("own.safetensors").config.encoder.std == (0.5,) * 3
    code, printed = maejax("inspect", "own.safetensors", "--mean", 0.4, 0.4, 0.4)
    assert code == 2 and "own.safetensors says (0.5, 0.5, 0.5); leave it out" in printed
