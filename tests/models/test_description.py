"""Descriptions of models: read from what they wrote and from what earlier versions wrote, checked, and without JAX."""

import json
import subprocess
import sys

import pytest

from maejax.models.description import MAE, Classifier, Decoder, ViT, change_encoder
from maejax.models.stored import from_json

SMALL = ViT(image_size=(16, 24), patch_size=4, dim=16, layers=2, heads=2, gelu="tanh", droppath=0.1)
MODELS = [
    SMALL,
    MAE(encoder=SMALL, decoder=Decoder(dim=8, layers=1, heads=2, layerscale=True, gelu="tanh"), mask_ratio=0.5),
    Classifier(encoder=SMALL, labels=3, pooling="gap"),
    Classifier(encoder=change_encoder(SMALL, channels=1, mean=(0.3,), std=(0.2,)), labels=3, head_norm=1e-6),
]
# As config.json and .safetensors files had them up to commit 02a4384, beside how the run was computed.
FLAT_ENCODER = {
    "image_size": [16, 24], "patch_size": 4, "channels": 3, "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225], "dim": 16, "layers": 2, "heads": 2, "posemb": "sincos2d", "layerscale": False,
    "dropout": 0.0, "droppath": 0.1, "remat": "named", "scan": True, "dtype": "bfloat16", "attention": "cudnn",
    "gelu": "tanh",
}  # fmt: skip
FLAT = [
    {},
    {
        "mask_ratio": 0.5, "norm_pix_loss": False, "dec_dim": 8, "dec_layers": 1, "dec_heads": 2,
        "dec_posemb": "sincos2d", "dec_layerscale": True, "dec_dropout": 0.0, "dec_droppath": 0.0,
    },
    {"labels": 3, "pooling": "gap"},
    {"labels": 3, "pooling": "cls", "head_norm": 1e-6, "channels": 1, "mean": [0.3], "std": [0.2]},
]  # fmt: skip


@pytest.mark.parametrize("number", range(4))
def test_a_description_is_read_back_and_so_is_a_flat_one(number):
    model = MODELS[number]
    assert from_json(json.loads(json.dumps(model.to_json()))) == model
    assert hash(model) == hash(from_json(model.to_json()))
    assert from_json(FLAT_ENCODER | FLAT[number]) == model


def test_an_unknown_field_is_refused():
    with pytest.raises(ValueError, match=r"this version knows no such model: .*experts"):
        from_json(SMALL.to_json() | {"experts": 4})


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ViT(layers=0), "layers is 0: give at least 1"),
        (lambda: ViT(patch_size=0), "patch_size is 0: give at least 1"),
        (lambda: ViT(channels=2, mean=(0.5,)), "2 channels need as many means"),
        (lambda: ViT(dim=6, heads=1), "positions need a width divisible by 4, not 6"),
        (lambda: ViT(gelu="relu"), "gelu is erf, tanh or quick, not relu"),
        (lambda: ViT(posemb="none"), "positions are sincos2d, learnable or rotary, not none"),
        (lambda: MAE(mask_ratio=1.0), "mask ratio 1.0 leaves 0 of 196 patches visible"),
        (lambda: Classifier(labels=0), "at least 1 class, not 0"),
    ],
)
def test_values_that_do_not_fit_are_refused(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_channels_choose_the_usual_normalisation_and_pooling_the_final_norm():
    assert ViT().mean == (0.485, 0.456, 0.406) and ViT(channels=2).std == (0.5, 0.5)
    assert not Classifier(labels=2, pooling="gap").encoder.final_norm
    assert Classifier(labels=2, encoder=ViT(final_norm=False)).encoder.final_norm


def test_descriptions_need_no_jax():
    program = "import sys, maejax.models.description; assert not {'jax', 'flax', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
