"""Fast forms in a run: which are compared, what all processes agree on, and a run that goes on without one."""

import json
import math

import pytest
from maejax.models.config import MAE, Classifier, Compute, Stack, ViT

from maejax.ops.check import Comparison, Sizes
from maejax.tasks import fast_forms
from maejax.tasks.fast_forms import choose_forms, layer_sizes


def test_the_layers_are_those_of_the_step():
    assert layer_sizes(MAE(), 64) == [
        Sizes("encoder", 64, 50, 50, 768, 12),
        Sizes("decoder", 64, 197, 197, 512, 16),
        Sizes("decoder's last block", 64, 147, 197, 512, 16),
    ]
    shallow = layer_sizes(MAE(decoder=Stack(dim=512, layers=1, heads=16)), 64)
    assert [sizes.part for sizes in shallow] == ["encoder", "decoder's last block"]
    assert layer_sizes(Classifier(encoder=ViT(), labels=10), 8) == [Sizes("encoder", 8, 197, 197, 768, 12)]


def outcome(form, part="encoder", gradient=0.001, error=""):
    return Comparison(form, part, math.nan if error else 0.001, math.nan if error else gradient, 0.0078, error)


def chosen(monkeypatch, found, compute=None, others=()):
    """Choose with these comparisons here; `others` are what further processes tell, by form."""
    asked = {}

    def compare(layers, dtype, *, attention):
        asked.update(layers=layers, dtype=str(dtype), attention=attention)
        return found

    monkeypatch.setattr(fast_forms, "compare_fast_forms", compare)
    monkeypatch.setattr(fast_forms, "gather", lambda told, mesh: json.loads(json.dumps([told, *others])))
    return *choose_forms(compute or Compute(dtype="bfloat16"), ["layers"], None), asked  # type: ignore[arg-type]


def test_forms_that_pass_run_and_are_named(monkeypatch):
    found = [outcome("pieces"), outcome("pallas", gradient=0.002), outcome("pieces", "decoder", 0.003)]
    compute, lines, asked = chosen(monkeypatch, found)
    assert (compute.attention, compute.pieces) == ("pallas", True)
    assert lines == [
        "TPU attention kernel in the encoder: off by 1.0e-03 forward, 2.0e-03 in the gradient; 7.8e-03 allowed",
        "MLP in pieces of tokens in the decoder: off by 1.0e-03 forward, 3.0e-03 in the gradient; 7.8e-03 allowed",
    ]
    assert asked == {"layers": ["layers"], "dtype": "bfloat16", "attention": True}
    assert chosen(monkeypatch, [outcome("cudnn")])[0].attention == "cudnn"


def test_a_form_that_fails_in_one_part_is_left_out_everywhere(monkeypatch):
    found = [outcome("pieces", gradient=math.nan), outcome("pieces", "decoder"), outcome("pallas", gradient=0.3)]
    compute, lines, _ = chosen(monkeypatch, [*found, outcome("pallas", "decoder", error="XlaRuntimeError: INTERNAL")])
    assert (compute.attention, compute.pieces) == ("xla", False)
    left_out = [line for line in lines if line.endswith("; left out, plain products run")]
    assert len(left_out) == len(lines) == 2 and any("XlaRuntimeError" in line or "3.0e-01" in line for line in lines)


def test_attention_that_was_chosen_by_name_stays(monkeypatch):
    compute, _, asked = chosen(monkeypatch, [outcome("pieces")], Compute(dtype="bfloat16", attention="pallas"))
    assert compute.attention == "pallas" and asked["attention"] is False


def test_a_form_that_fails_in_another_process_is_left_out_in_all(monkeypatch):
    other = {"pieces": [True, "well"], "pallas": [False, "TPU attention kernel in the decoder: no such chip"]}
    compute, lines, _ = chosen(monkeypatch, [outcome("pieces"), outcome("pallas")], others=[other])
    assert (compute.attention, compute.pieces) == ("xla", True)
    wanted = "process 1: TPU attention kernel in the decoder: no such chip; left out, plain products run"
    assert wanted in lines and sum("left out" in line for line in lines) == 1


def test_on_cpu_nothing_changes_and_nobody_waits_for_the_others(monkeypatch):
    monkeypatch.setattr(fast_forms, "gather", None)
    assert choose_forms(Compute(), layer_sizes(MAE(), 8), None) == (Compute(), [])  # type: ignore[arg-type]


@pytest.fixture
def believed_tpu(monkeypatch):
    """Take this machine for a TPU: its CPU refuses the kernel, which Pallas would have to interpret."""
    monkeypatch.setattr("maejax.ops.platform.target_platform", lambda: "tpu")


def test_a_run_goes_on_without_a_form_that_fails(train, images, believed_tpu, monkeypatch):
    wide = ("--dim", 128, "--dec-dim", 128, "--training-steps", 2, "--valid-dataset-shards", images)
    code, printed = train(*wide, "--name", "without")
    assert code == 0, printed
    (line,) = (line for line in printed.splitlines() if "TPU attention kernel" in line)
    assert line.startswith("forms    TPU attention kernel in the") and line.endswith("; left out, plain products run")
    assert "forms    MLP in pieces of tokens in the" in printed
