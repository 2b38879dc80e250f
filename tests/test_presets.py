"""Presets: what each resolves to is the published recipe (paper, Tables 8-10; the authors' FINETUNE.md)."""

import json
import os
import subprocess

import pytest

from .conftest import ROOT

IMAGES = 1281167
SIZES = {
    "b16": {"layers": 12, "dim": 768, "heads": 12, "patch_size": 16},
    "l16": {"layers": 24, "dim": 1024, "heads": 16, "patch_size": 16},
    "h14": {"layers": 32, "dim": 1280, "heads": 16, "patch_size": 14},
}


def steps(epochs, batch):
    return IMAGES * epochs // batch


def pretraining(epochs):
    return {
        "mode": "pretrain", "train_batch_size": 4096, "optimizer": "adamw", "learning_rate": 1.5e-4,
        "weight_decay": 0.05, "adam_b1": 0.9, "adam_b2": 0.95, "warmup_steps": steps(40, 4096),
        "training_steps": steps(epochs, 4096), "crop_scale": 0.2, "random_crop": "rrc", "color_jitter": 0,
        "image_mask_ratio": 0.75, "dec_layers": 8, "dec_dim": 512, "dec_heads": 16, "norm_pix_loss": False,
        "auto_augment": "none", "droppath": 0, "clip_grad": 0, "lr_decay": 1, "posemb": "sincos2d",
    }  # fmt: skip


def probing(optimizer, batch, rate):
    return {
        "mode": "linear", "train_batch_size": batch, "optimizer": optimizer, "learning_rate": rate, "weight_decay": 0,
        "warmup_steps": steps(10, batch), "training_steps": steps(90, batch), "crop_scale": 0.08,
        "random_crop": "rrc", "pooling": "cls", "labels": 1000, "mixup": 0, "cutmix": 0, "label_smoothing": 0,
        "random_erasing": 0, "auto_augment": "none", "droppath": 0, "image_mask_ratio": 0, "criterion": "ce",
        "pretrained_ckpt": "the-weights",
    }  # fmt: skip


def tuning(rate, decay, drop, epochs):
    return {
        "mode": "finetune", "train_batch_size": 1024, "optimizer": "adamw", "learning_rate": rate, "lr_decay": decay,
        "droppath": drop, "weight_decay": 0.05, "adam_b1": 0.9, "adam_b2": 0.999, "warmup_steps": steps(5, 1024),
        "training_steps": steps(epochs, 1024), "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1,
        "random_erasing": 0.25, "auto_augment": "rand-m9-mstd0.5-inc1", "pooling": "gap", "labels": 1000,
        "crop_scale": 0.08, "test_crop_ratio": 0.875, "posemb": "learnable", "image_mask_ratio": 0, "criterion": "ce",
        "pretrained_ckpt": "the-weights", "finetune_blocks": "all", "ema": 0,
    }  # fmt: skip


RECIPES = {
    "pretrain/pretrain-vit-b16-224-in1k-1600ep": pretraining(1600) | SIZES["b16"],
    "pretrain/pretrain-vit-l16-224-in1k-800ep": pretraining(800) | SIZES["l16"],
    "pretrain/pretrain-vit-h14-224-in1k-1600ep": pretraining(1600) | SIZES["h14"],
    **{f"linear_probe/ln-lars-vit-{size}-224-in1k": probing("lars", 16384, 0.1) | SIZES[size] for size in SIZES},
    **{f"linear_probe/ln-sgd-vit-{size}-224-in1k": probing("sgd", 4096, 3.0) | SIZES[size] for size in SIZES},
    "finetune/ft-vit-b16-224-in1k": tuning(5e-4, 0.65, 0.1, 100) | SIZES["b16"],
    "finetune/ft-vit-l16-224-in1k": tuning(1e-3, 0.75, 0.2, 50) | SIZES["l16"],
    "finetune/ft-vit-h14-224-in1k": tuning(1e-3, 0.75, 0.3, 50) | SIZES["h14"],
}


def test_every_preset_has_a_recipe():
    assert {str(path.relative_to(ROOT / "config"))[:-3] for path in ROOT.glob("config/*/*.sh")} == RECIPES.keys()


@pytest.mark.parametrize("preset", RECIPES)
def test_a_preset_resolves_to_its_recipe(maejax, tmp_path, preset):
    # In the place of Python: print what it is called with. Starting it for every preset would take too long.
    stub = tmp_path / "bin" / "python3"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n")
    stub.chmod(0o755)
    places = {"GCS_DATASET_DIR": "the-bucket", "GCS_MODEL_PATH": "the-weights"}
    path = os.pathsep.join([str(stub.parent), os.environ["PATH"]])
    called = subprocess.run(
        ["bash", ROOT / "config" / f"{preset}.sh", "--print-config"], env={**os.environ, **places, "PATH": path},
        text=True, capture_output=True, check=True,
    ).stdout.split("\0")[:-1]  # fmt: skip
    assert called[0] == "src/main.py"
    code, printed = maejax("train", *called[1:])
    assert code == 0, printed
    found = json.loads(printed)
    wanted = {
        **RECIPES[preset], "image_size": "224", "valid_batch_size": 512, "augment_repeats": 1,
        "name": preset.rpartition("/")[2], "output_dir": "the-bucket/CKPT",
        "train_dataset_shards": "the-bucket/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar",
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted
