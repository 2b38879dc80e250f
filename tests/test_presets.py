"""Every recipe in config/ says what the paper and the authors' code say, for ImageNet-1k's 1,281,167 images."""

import json
import os
import subprocess

import pytest

from maejax.cli import main

from .conftest import ROOT

SIZES = {"b16": (12, 768, 12, 16), "l16": (24, 1024, 16, 16), "h14": (32, 1280, 16, 14)}  # paper, Table 3; ViT
EPOCHS = {"b16": (1600, 100), "l16": (800, 50), "h14": (1600, 50)}  # of pre-training and fine-tuning
FINETUNE = {"b16": (5e-4, 0.65, 0.1), "l16": (1e-3, 0.75, 0.2), "h14": (1e-3, 0.75, 0.3)}  # authors: rate, decay, path
ABLATIONS = sorted((ROOT / "config/ablations").glob("*.sh"))
PRESETS = sorted(set((ROOT / "config").glob("*/*.sh")) - set(ABLATIONS))


def resolve(preset, tmp_path, capsys):
    """Run a preset with a stand-in for maejax that notes its arguments, and let the real one resolve them."""
    fake = tmp_path / "maejax"
    fake.write_text('#!/bin/sh\nshift\nprintf "%s\\n" $$ "$@" > "$NOTED"\n')
    fake.chmod(0o755)
    noted = tmp_path / "arguments"
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "NOTED": str(noted), "GCS_DATASET_DIR": "gs://bucket",
        "GCS_MODEL_PATH": "gs://bucket/m.msgpack",
    }  # fmt: skip
    process = subprocess.Popen(["bash", preset, "--print-config"], env=environment)
    assert process.wait() == 0
    number, *flags = noted.read_text().splitlines()
    assert int(number) == process.pid, "a signal to the recipe is to reach the training, and its exit code the caller"
    assert main(["train", *flags]) == 0
    return json.loads(capsys.readouterr().out)


def test_there_is_one_for_every_size_and_mode():
    assert len(PRESETS) == 12


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_are_the_published_recipes(preset, tmp_path, capsys):
    given = resolve(preset, tmp_path, capsys)
    size = next(size for size in SIZES if size in preset.stem)
    batch, (pretrain, finetune) = given["train_batch_size"], EPOCHS[size]
    pretrained = {"pretrained_ckpt": "gs://bucket/m.msgpack", "labels": 1000, "image_mask_ratio": 0, "crop_scale": 0.08}
    if given["mode"] == "pretrain":  # Table 8
        epochs, warmup, rate, pretrained = pretrain, 40, 1.5e-4, {}
        wanted = {
            "train_batch_size": 4096, "weight_decay": 0.05, "adam_b1": 0.9, "adam_b2": 0.95, "optimizer": "adamw",
            "image_mask_ratio": 0.75, "dec_layers": 8, "dec_dim": 512, "dec_heads": 16, "crop_scale": 0.2,
            "droppath": 0, "clip_grad": 0, "auto_augment": "none", "norm_pix_loss": size == "h14", "posemb": "sincos2d",
        }  # fmt: skip
    elif given["mode"] == "linear":  # Table 10; MoCo v3 for SGD
        sgd = given["optimizer"] == "sgd"
        epochs, warmup, rate = 90, (0 if sgd else 10), (3.0 if sgd else 0.1)
        wanted = {
            "train_batch_size": 4096 if sgd else 16384, "weight_decay": 0, "pooling": "cls", "mixup": 0, "cutmix": 0,
            "label_smoothing": 0, "droppath": 0, "auto_augment": "none", "optimizer": "sgd" if sgd else "lars",
        }  # fmt: skip
    else:  # Table 9, and the authors' FINETUNE.md
        epochs, warmup = finetune, 5
        rate, decay, path = FINETUNE[size]
        wanted = {
            "train_batch_size": 1024, "weight_decay": 0.05, "adam_b2": 0.999, "lr_decay": decay, "droppath": path,
            "auto_augment": "rand-m9-mstd0.5-inc1", "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1,
            "random_erasing": 0.25, "pooling": "gap", "posemb": "learnable", "min_learning_rate": 1e-6,
            "optimizer": "adamw",
        }  # fmt: skip
    wanted |= dict(zip(("layers", "dim", "heads", "patch_size"), SIZES[size], strict=True)) | pretrained
    wanted |= {"name": preset.stem, "learning_rate": rate, "peak_learning_rate": pytest.approx(rate * batch / 256)}
    wanted |= {"training_steps": 1281167 * epochs // batch, "warmup_steps": 1281167 * warmup // batch}
    assert {name: given[name] for name in wanted} == wanted
    assert given["train_dataset_shards"].endswith("imagenet1k-train-{0000..1023}.tar")


CHANGED = {
    **{f"table1a-depth-{n}": {"dec_layers": n} for n in (1, 2, 4, 8, 12)},
    **{f"table1b-width-{n}": {"dec_dim": n} for n in (128, 256, 512, 768, 1024)},
    "table1c-mask-tokens-in-encoder": {"encoder_mask_tokens": True},
    "table1c-no-mask-tokens-in-encoder": {},
    "table1d-pixels": {},
    "table1d-normalised-pixels": {"norm_pix_loss": True},
    "table1d-pca": {"target": "pca"},
    "table1e-none": {"random_crop": "none", "flip": "none"},
    "table1e-crop-fixed": {"random_crop": "src"},
    "table1e-crop-random": {},
    "table1e-crop-color-jitter": {"color_jitter": 0.4},
    "table1f-random-75": {},
    "table1f-block-50": {"mask": "block", "image_mask_ratio": 0.5},
    "table1f-block-75": {"mask": "block"},
    "table1f-grid-75": {"mask": "grid"},
    **{f"figure5-ratio-{n}": {"image_mask_ratio": n / 100} for n in (10, 20, 30, 40, 50, 60, 70, 75, 80, 90)},
    **{f"figure7-epochs-{n}": {"training_steps": 1281167 * n // 4096} for n in (100, 200, 400, 800, 1600)},
    "figure9-blocks-0": {},
    **{f"figure9-blocks-{n}": {"finetune_blocks": str(n)} for n in ("half", 1, 2, 4, 6, 12, 18, 24)},
}


def test_each_ablation_changes_its_row_alone(tmp_path, capsys):
    assert {path.stem for path in ABLATIONS} == CHANGED.keys()
    base = {}
    for script in ABLATIONS:
        folder, name = ("finetune", "ft") if script.stem.startswith("figure9") else ("pretrain", "pretrain")
        epochs = "-800ep" if folder == "pretrain" else ""
        if script.stem == "figure9-blocks-0":
            folder, name = "linear_probe", "ln-lars"
        preset = ROOT / "config" / folder / f"{name}-vit-l16-224-in1k{epochs}.sh"
        base[preset] = base.get(preset) or resolve(preset, tmp_path, capsys)
        wanted = base[preset] | CHANGED[script.stem] | {"name": script.stem}
        assert resolve(script, tmp_path, capsys) == wanted, script.stem
