"""Fast forms in a run: which are compared, what all processes agree on, and a run that goes on without one."""

import json
import math

import pytest

from maejax.config import with_flags
from maejax.models.description import MAE, Classifier, Compute, Decoder, ViT
from maejax.ops.check import Comparison, Sizes
from maejax.recipes import recipe
from maejax.tasks import fast_forms
from maejax.tasks.fast_forms import choose_forms, layer_sizes


def test_the_layers_are_those_of_the_step():
    assert layer_sizes(MAE(), 64) == [
        Sizes("encoder", 64, 50, 50, 768, 12, 3072),
        Sizes("decoder", 64, 197, 197, 512, 16, 2048),
        Sizes("decoder's last block", 64, 147, 197, 512, 16, 2048),
    ]
    shallow = layer_sizes(MAE(decoder=Decoder(dim=512, layers=1, heads=16)), 64)
    assert [sizes.part for sizes in shallow] == ["encoder", "decoder's last block"]
    assert layer_sizes(Classifier(encoder=ViT(), labels=10), 8) == [Sizes("encoder", 8, 197, 197, 768, 12, 3072)]


def outcome(form, part="encoder", gradient=0.001, error=""):
    return Comparison(form, part, math.nan if error else 0.001, math.nan if error else gradient, 0.0078, error)


@pytest.fixture
def choose(monkeypatch):
    """Choose where these comparisons are found here, and `others` are the outcomes of further processes."""

    def chosen(found, attention="auto", others=()):
        asked = []
        batch = {"train_batch_size": 48, "grad_accum": 3}
        config = with_flags(recipe("pretrain"), precision="bfloat16", attention=attention, **batch)
        monkeypatch.setattr(fast_forms, "compare_fast_forms", lambda *args, **more: asked.append((args, more)) or found)
        monkeypatch.setattr(fast_forms, "gather", lambda here, mesh: json.loads(json.dumps([here, *others])))
        return *choose_forms(config, MAE()), asked

    return chosen


def test_forms_that_pass_run_and_are_named(choose):
    found = [outcome("pieces", "decoder", 0.003), outcome("pieces"), outcome("pallas", gradient=0.002)]
    compute, lines, [(args, more)] = choose(found)
    assert compute == Compute(dtype="bfloat16", attention="pallas", pieces=True)
    assert sorted(lines) == [
        "MLP in pieces of tokens in the decoder: off by 1.0e-03 forward, 3.0e-03 in the gradient; 7.8e-03 allowed",
        "TPU attention kernel in the encoder: off by 1.0e-03 forward, 2.0e-03 in the gradient; 7.8e-03 allowed",
    ]
    # 48 images in three parts on the four devices of the tests.
    assert args == (layer_sizes(MAE(), 4), "bfloat16") and more == {"attention": True}
    assert choose([outcome("cudnn")])[0].attention == "cudnn"


def test_a_form_that_fails_in_one_part_is_left_out_of_all(choose):
    found = [outcome("pieces", gradient=math.nan), outcome("pieces", "decoder"), outcome("pallas", gradient=0.3)]
    compute, lines, _ = choose([*found, outcome("pallas", "decoder", error="XlaRuntimeError: INTERNAL")])
    assert (compute.attention, compute.pieces) == ("xla", False)
    assert len(lines) == 2 and all(line.endswith("; left out, plain products run") for line in lines)


def test_attention_that_was_chosen_by_name_stays(choose):
    compute, _, [(_, more)] = choose([outcome("pieces")], "pallas")
    assert compute.attention == "pallas" and more == {"attention": False}


def test_a_form_that_fails_in_another_process_is_left_out_in_all(choose):
    other = {"pieces": [True, "passed"], "pallas": [False, "TPU attention kernel in the decoder: no such chip"]}
    compute, lines, _ = choose([outcome("pieces"), outcome("pallas")], others=[other])
    assert (compute.attention, compute.pieces) == ("xla", True)
    wanted = "process 1: TPU attention kernel in the decoder: no such chip; left out, plain products run"
    assert wanted in lines and sum("left out" in line for line in lines) == 1


def test_on_cpu_nothing_changes_and_nobody_waits_for_the_others(monkeypatch):
    monkeypatch.setattr(fast_forms, "gather", None)
    config = with_flags(recipe("pretrain"), precision="bfloat16")
    assert choose_forms(config, MAE()) == (Compute(dtype="bfloat16"), [])


def test_a_run_goes_on_without_a_form_that_fails(train, images, monkeypatch):
    """Where the CPU is taken for a TPU, it refuses the kernel and computes the MLP in pieces."""
    monkeypatch.setattr("maejax.training.state.target_platform", lambda: "cpu")  # it takes no options of the TPU
    monkeypatch.setattr("maejax.ops.platform.target_platform", lambda: "tpu")
    code, printed = train("--dim", 128, "--dec-dim", 128, "--training-steps", 2, "--valid-dataset-shards", images)
    assert code == 0, printed
    lines = sorted(line for line in printed.splitlines() if line.startswith("forms    "))
    assert len(lines) == 2 and lines[0].startswith("forms    MLP in pieces of tokens in the decoder")
    assert lines[1].startswith("forms    TPU attention kernel in the ") and "interpret mode" in lines[1]
    assert lines[1].endswith("; left out, plain products run")
