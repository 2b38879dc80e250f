"""ONNX files: onnxruntime computes what our models do, for every part that an encoder can have."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from maejax.data.augment import build_eval
from maejax.errors import WeightsError
from maejax.evaluation.encoding import encode
from maejax.models.description import Classifier
from maejax.weights import files, hub
from maejax.weights.weights import Weights, model_of
from tests.bounds import assert_close

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
onnx_export = pytest.importorskip("maejax.weights.onnx_export")

CASES = {
    "mae": (None, {"posemb": "sincos2d"}),
    "dinov2": ("cls+mean", {"layerscale": True, "registers": 2, "gated": True, "hidden": 48, "qk_norm": True}),
    "dinov3": ("mean", {"posemb": "rotary", "registers": 3, "qkv_bias": False, "image_type": "uint16", "no_data": 7}),
    "clip": ("cls", {"pre_norm": True, "gelu": "quick", "norm_eps": 1e-5, "image_type": "float32", "channels": 5}),
    "siglip": ("map", {"cls_token": False, "attention_pool": True, "gelu": "tanh"}),
    "no positions": ("mean", {"posemb": "rotary", "cls_token": False, "image_type": "float16", "no_data": -1}),
    "deit3": ("cls", {"cls_position": False}),
}


def run(proto, images):
    (found,) = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {"images": images})
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_part_of_an_encoder_is_exact(weights, case):
    pool, changes = CASES[case]
    changes = {"posemb": "learnable", "layers": 2 if case == "dinov2" else 1} | changes
    made = weights("mae" if case == "mae" else "encoder", **changes)
    proto, encoder = onnx_export.model_proto(made, pool, logits=False), made.config.encoder
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == onnx_export.OPSET == 20
    images = np.random.default_rng(1).integers(0, 9, (3, 16, 24, encoder.channels)).astype(encoder.image_type)
    if encoder.image_type.startswith("float"):
        images[0, 3:9, 2:5] = np.nan
        images[1, 5:7] = -1
    wanted = np.asarray(encode(model_of(made), images, pool))
    assert_close(run(proto, images), wanted)
    assert_close(run(proto, images[:1]), wanted[:1])


@pytest.mark.parametrize("pooling", ["gap", "cls+avg", "probe"])
def test_a_classifier_gives_its_logits(weights, pooling):
    made = weights("gap" if pooling == "gap" else "probe", layers=1)
    if pooling == "cls+avg":
        config = Classifier(encoder=made.config.encoder, labels=5, pooling=pooling)
        kernel = np.resize(made.arrays["head.kernel"], (config.features, 5))
        arrays = {name: array for name, array in made.arrays.items() if not name.startswith("head_norm")}
        made = Weights(arrays | {"head.kernel": kernel}, config, "maejax", "a test", classes=tuple("abcde"))
    proto = onnx_export.model_proto(made, None, logits=True)
    images = np.random.default_rng(1).integers(0, 256, (2, 16, 24, 3), np.uint8)
    assert_close(run(proto, images), jax.jit(model_of(made))(images))
    assert proto.graph.output[0].name == "logits"
    assert {each.key: json.loads(each.value) for each in proto.metadata_props}.get("classes", []) == list(made.classes)


def test_a_part_without_a_form_is_refused_by_name(weights):
    made = weights("encoder")
    made.arrays["encoder.transformer.blocks.lora"] = np.zeros((2, 64))
    with pytest.raises(WeightsError, match=r"blocks\.0\.lora has no form there; give --to stablehlo"):
        onnx_export.model_proto(made, "cls", logits=False)


def test_the_lines_that_are_printed_and_on_the_card_run_a_photo(maejax, weights, monkeypatch):
    """In one file and, as above 2 GB, in two."""
    made = weights("cls", image_size=(32, 32), patch_size=8)
    files.write(made, "m.safetensors", "maejax")
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    Image.fromarray(noise).resize((70, 90), Image.Resampling.BICUBIC).save("photo.jpg")
    assert maejax("export", "m.safetensors", "--onnx", "--pool", "mean", "--name", "me/m")[0] == 0
    monkeypatch.setattr(onnx_export, "LARGEST", 0)
    two = ["model.onnx.data", "model.onnx"]
    code, printed = maejax("export", "m.safetensors", "--to", "onnx", "--out", "two/onnx/model.onnx", "--json")
    assert code == 0 and "opset 20" in printed
    told = json.loads(printed[printed.index("{") :])
    assert told["files"] == two and sorted(told["files"]) == sorted(each.name for each in Path("two/onnx").iterdir())
    cards = Path("m-hub/README.md").read_text(), hub.describe(made, "two", data={}, recipe={}, numbers={}, onnx=two)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: f"{name.replace('me/m', 'm-hub')}/{file}")
    codes = told["use"], *(re.findall(r"```python\n(.*?)```", card, re.S)[-1] for card in cards)
    photo = np.asarray(Image.open("photo.jpg"))
    model, seen = model_of(made), build_eval((32, 32), made.crop_ratio)(photo, np.random.default_rng())[None]
    logits = jax.jit(model)(seen)
    for code, wanted in zip(codes, (logits, encode(model, seen, "mean"), logits), strict=True):
        found = {}
        exec(code, found)
        assert_close(found["out"], wanted, 0.01)  # Pillow resizes within .2/255


def test_what_an_export_does_not_use_is_refused(maejax, weights, monkeypatch):
    files.write(weights("encoder"), "m.safetensors", "maejax")
    for flags, said in (
        (("--to", "stablehlo", "--onnx"), "leave it out of --to stablehlo"),
        (("--pool", "mean"), "add --onnx, or leave it out"),
    ):
        code, printed = maejax("export", "m.safetensors", *flags)
        assert code == 2 and said in printed
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, printed = maejax("export", "none", "--to", "onnx")
    assert code == 2 and "--to onnx needs onnx: " in printed and "maejax[onnx]" in printed
