"""`maejax plan` from end to end on this machine's devices and, where its compiler is installed, on a TPU slice."""

import json
import re
from pathlib import Path

import pytest

from maejax.plan.compiled import Compiled, Memory

from ..conftest import ROOT, TINY

MODEL = [*TINY[:16], "--train-batch-size", "8"]


def test_plan_for_this_machine(maejax, tmp_path):
    code, printed = maejax("plan", "--topology", "cpu", *MODEL, "--training-steps", "6", "--images", "24", "--json")
    assert code == 0, printed
    facts = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert (facts["devices"], facts["hosts"], facts["batch_per_device"]) == (4, 1, 2)
    assert facts["fits"] and facts["step_seconds"] is None
    memory = facts["memory"]
    assert (
        memory["peak"] == sum(memory[k] for k in ("arguments", "temporaries", "output", "code")) - memory["given_back"]
    )
    # Every gradient is summed over the devices, once, and nothing else of that size is sent.
    parameters = memory["output"] / 4 / 3  # float32, with two slots of AdamW
    sent = sum(c["bytes"] for c in facts["collectives"] if c["kind"] == "all-reduce") / 4
    assert parameters * 0.9 < sent < parameters * 1.1
    written = json.loads((tmp_path / "plan/plan.json").read_text())
    assert written["hlo_flop"] == facts["hlo_flop"] > 0
    page = (tmp_path / "plan/plan.html").read_text()
    assert "not estimated" in page and "4 x cpu on 1 host" in page


def test_plan_of_probing_and_fine_tuning(maejax):
    step = {}
    for mode in ("linear", "finetune"):
        model = [*MODEL[: MODEL.index("--dec-layers")], "--train-batch-size", "8"]
        code, printed = maejax("plan", "--topology", "cpu", *model, "--mode", mode, "--labels", "10", "--json")
        assert code == 0, printed
        step[mode] = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    sent = {
        mode: sum(c["bytes"] for c in facts["collectives"] if c["kind"] == "all-reduce") for mode, facts in step.items()
    }
    weights = step["finetune"]["memory"]["output"] / 3
    assert weights * 0.9 < sent["finetune"] < weights * 1.1  # every gradient once, in float32
    assert sent["linear"] < 0.2 * sent["finetune"]  # of the head's alone, and the statistics of its features
    assert step["linear"]["model_flop"] * 3 == step["finetune"]["model_flop"]


def test_weights_give_the_sizes_that_no_flag_does(maejax, trained, monkeypatch):
    planned = []
    monkeypatch.setattr("maejax.commands.planner.Planner.plan", lambda self, _: planned.append(self.config) or {})
    monkeypatch.setattr("maejax.commands.plan.PlanCommand.show", lambda *_: None)
    monkeypatch.setattr("maejax.commands.plan.PlanCommand.following", lambda *_: "")
    tuned = ("plan", "--topology", "cpu", "--mode", "finetune", "--train-batch-size", 8, "--image-size", 32)
    for ckpt, layers, said in (
        (trained, 2, "weights  --layers 2, as the file says"),
        ("nowhere.safetensors", 12, "weights  not read, so the flags alone give the sizes: nowhere.safetensors"),
    ):
        code, printed = maejax(*tuned, "--pretrained-ckpt", ckpt)
        assert code == 0 and said in printed and planned[-1].encoder.layers == layers, printed
    assert planned[0].image_shape == (32, 32)
    code, printed = maejax(*tuned, "--pretrained-ckpt", trained, "--layers", 1)
    assert planned[-1].encoder.layers == 1 and "--layers 2" not in printed


def test_the_smallest_change_that_fits_is_found(maejax, monkeypatch):
    from maejax.commands import planner

    text = (ROOT / "tests/plan/step.hlo").read_text()

    def compile_step(config, target):
        if config.encoder.grad_ckpt:
            return Compiled(text, Memory(1000, 2000, 500, 500, 10), 1.0)
        return Compiled("", None, 1.0, 40 * 2**30, 31 * 2**30)

    monkeypatch.setattr(planner, "compile_step", compile_step)
    code, printed = maejax("plan", "--topology", "cpu", *MODEL)
    assert code == 0 and "needs 40.00 GiB" in printed and "does not fit" in printed
    assert re.search(r"to make it fit +--grad-ckpt +firm", printed)
    code, printed = maejax("plan", "--topology", "cpu", *MODEL, "--sweep", "--out", "swept")
    rows = json.loads(Path("swept/plan.json").read_text())["sweep"]
    assert [(r["choice"]["layers"], r["choice"]["remat"], r["choice"]["sharding"], r["fits"]) for r in rows[:4]] == [
        ("unrolled", "none", "replicated", False), ("unrolled", "none", "fsdp", False),
        ("unrolled", "every block", "replicated", True), ("unrolled", "every block", "fsdp", True),
    ]  # fmt: skip
    assert [r["batch_size"] for r in rows[8:]] == [4, 16]
    assert Path("swept/plan.html").read_text().count("does not fit") >= 4


def test_a_preset_gives_its_flags_and_later_ones_win(maejax):
    from maejax.commands.plan import preset_flags

    preset = ROOT / "config/pretrain/pretrain-vit-l16-224-in1k-800ep.sh"
    flags = preset_flags([str(preset), "--layers", "3"])
    assert flags[-2:] == ["--layers", "3"] and flags[flags.index("--dim") + 1] == "1024"
    assert flags[flags.index("--training-steps") + 1] == str(1281167 * 800 // 4096)
    code, printed = maejax("plan", "--topology", "cpu", "nowhere.sh")
    assert code == 2 and "nowhere.sh does not exist" in printed


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--topology", "v4-9"], "--topology v4-9: slices of v4 are of 8"),
        (["--topology", "cpu", "--train-batch-size", "10"], "10 does not divide by the 4 devices of cpu"),
        (["--topology", "cpu", "--heads", "3"], "3 heads do not divide a width of 16"),
        (["--topology", "cpu", "--mode", "linear", "--cache-features", "1"], "--cache-features: a step of heads alone"),
        (["--topology", "cpu", "--mode", "linear", "--mixup", "0.8"], "--mixup .*a linear probe trains its head alone"),
    ],
)
def test_bad_flags_get_one_sentence(maejax, flags, sentence):
    code, printed = maejax("plan", *MODEL, *flags)
    assert code == 2 and re.search(sentence, printed), printed


def test_recipes_that_start_another_give_its_flags():
    from maejax.commands.plan import preset_flags

    flags = preset_flags([str(ROOT / "config/ablations/figure5-ratio-90.sh"), "--dim", "8"])
    assert flags[-2:] == ["--dim", "8"] and "0.9" in flags and "--layers" in flags
