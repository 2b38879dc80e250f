"""Pre-training goes on from an encoder alone: a fresh decoder, and the encoder frozen at first."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from maejax.models.build import initial_model
from maejax.models.stored import from_json
from maejax.models.trees import named_arrays
from maejax.training.checkpoint import read_model_arrays
from maejax.training.rundir import read_config
from maejax.weights import files

from ..bounds import assert_close
from ..training.harness import losses

START = ["--pretrained-ckpt", "encoder.safetensors", "--new-decoder", "--name"]
FREEZE = ["--freeze-encoder-steps", 4]


@pytest.fixture
def encoder(maejax, trained):
    """Write the encoder of a run as timm has it; return its arrays by our names."""
    code, printed = maejax("convert", trained, "encoder.safetensors", "--to", "timm")
    assert code == 0, printed
    return files.read("encoder.safetensors").arrays


def arrays_at(run, step):
    return {name: np.asarray(a) for name, a in read_model_arrays(Path(f"runs/{run}/checkpoints/{step}")).items()}


def test_the_encoder_is_frozen_at_first_and_a_stopped_run_goes_on_bit_for_bit(train, encoder):
    code, printed = train(*START, "whole", *FREEZE)
    assert code == 0, printed
    assert "encoder.safetensors; its decoder starts anew" in printed and "(frozen up to step 4)" in printed
    for step, moves in ((2, False), (4, False), (6, True)):
        found = arrays_at("whole", step)
        assert all((found[name] != encoder[name]).any() == moves for name in encoder if name.endswith("kernel")), step
        assert moves or all((found[name] == encoder[name]).all() for name in encoder)
    sizes = [
        sum(f.stat().st_size for f in Path(f"runs/whole/checkpoints/{i}").rglob("*") if f.is_file()) for i in (4, 6)
    ]
    assert sizes[0] < 0.8 * sizes[1]  # no optimizer state for what is frozen
    for kept in (2, 4):  # in the first part, and where it ends
        shutil.copytree("runs/whole", f"runs/from{kept}")
        for step in {4, 6} - {kept}:
            shutil.rmtree(f"runs/from{kept}/checkpoints/{step}")
        Path("encoder.safetensors").rename("gone")
        code, printed = train(*START, f"from{kept}", *FREEZE)
        Path("gone").rename("encoder.safetensors")
        assert code == 0 and f"from step {kept} of 6" in printed, printed
        assert losses(f"runs/from{kept}") == losses("runs/whole")
        again, whole = arrays_at(f"from{kept}", 6), arrays_at("whole", 6)
        assert all((again[name] == whole[name]).all() for name in whole)


def test_the_decoder_is_that_of_a_new_run(train, maejax, trained, encoder, idle):
    """Also where the file has one; what the file says of the encoder alone holds."""
    with idle():
        code, printed = train("--pretrained-ckpt", trained, "--new-decoder", "--name", "anew")
    assert code == 0, printed
    found, fresh = arrays_at("anew", 6), initial_model(from_json(read_config(Path("runs/anew"))["model"]))
    assert all((found[name] == encoder[name]).all() for name in encoder)
    for name, array in named_arrays(fresh).items():
        if not name.startswith("encoder."):
            assert_close(found[name], array)  # compiled apart
    # A classifier on the patches' mean has no final norm.
    tune = "--mode finetune --pooling gap --auto-augment none --training-steps 1 --warmup-steps 0".split()
    on = "--pretrained-ckpt runs/gap --new-decoder --name on --posemb learnable".split()
    with idle():
        assert train(*tune, "--name", "gap")[0] == 0
        code, printed = train(*on)
    assert code == 0 and "it has no final norm: that starts as the identity" in printed, printed
    code, printed = maejax("inspect", "encoder.safetensors")
    assert "--pretrained-ckpt encoder.safetensors --new-decoder --freeze-encoder-steps STEPS" in printed


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--name", "x", "--pretrained-ckpt", "encoder.safetensors"],
            "no decoder for 3 channels, which pre-training needs: give --new",
        ),
        (["--prefix", "a."], "--prefix a. is for the tensors of --pretrained-ckpt: give one"),
        (["--name", "x", "--pretrained-ckpt", "runs/pretrain", "--prefix", "a."], "--prefix a.: runs/pretrain is"),
        (["--new-decoder"], "--new-decoder is for the encoder of --pretrained-ckpt: give one"),
        (FREEZE, "--freeze-encoder-steps is for the encoder of --pretrained-ckpt: give one"),
        ([*START, "x", "--freeze-encoder-steps", 6], "--freeze-encoder-steps 6: give less than --training-steps 6"),
        (["--export-msgpack", "--registers", 2], "the original has no registers; convert to timm or maejax"),
        (["--mode", "finetune", "--new-decoder"], "--mode finetune masks and reconstructs nothing"),
    ],
)
def test_what_does_not_fit_is_said(train, encoder, flags, sentence):
    code, printed = train(*flags)
    assert code == 2 and sentence in printed, printed
