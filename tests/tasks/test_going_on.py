"""A run that goes on: without its start file, with data elsewhere, with harmless flags, with more steps."""

import json
import shutil
from pathlib import Path

import numpy as np

from maejax.training.log import read_metrics
from maejax.weights import files

ON = ["--pretrained-ckpt", "start", "--name", "on"]


def metrics(name, run="runs/on"):
    return dict(read_metrics(Path(run) / "metrics.jsonl", name))


def interrupt(step=4, run="runs/on"):
    """Leave a run as it was after a step."""
    for folder in Path(run, "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)


def test_a_run_goes_on_when_its_start_is_gone_and_its_data_moved(train, trained, images, tmp_path):
    files.write(files.read(trained), "start", "maejax")
    assert train(*ON)[0] == 0
    before = metrics("train/loss")
    interrupt()
    Path("start").unlink()
    moved = shutil.copy(images, tmp_path / "elsewhere.npz")
    harmless = ["--grad-ckpt", "--attention", "xla", "--precision", "float32", "--train-dataset-shards", moved]
    code, printed = train(*ON, *harmless)
    assert code == 0 and f"the same images now come from {moved}" in printed, printed
    np.testing.assert_allclose(list(metrics("train/loss").values()), list(before.values()), rtol=1e-5)
    with np.load(images) as old:
        np.savez(moved, images=old["images"][::-1], labels=old["labels"])
    code, printed = train(*ON, *harmless)
    assert code == 0, printed  # config.json names the new place
    code, printed = train(*ON, *harmless, "--train-dataset-shards", images)
    assert code == 2 and "--train-dataset-shards" in printed, printed


def test_a_run_is_extended_by_either_schedule(train):
    def on(*args):
        return train("--name", "on", "--warmup-steps", 1, *args)

    assert on()[0] == 0
    code, printed = on("--training-steps", 9)
    assert code == 2 and "--schedule-steps 9 for one cosine over all steps, or --schedule-steps 6 and" in printed
    code, printed = on("--training-steps", 9, "--schedule-steps", 6)
    assert code == 2 and "a --min-learning-rate above 0" in printed
    code, printed = on("--training-steps", 9, "--schedule-steps", 6, "--min-learning-rate", 1e-5)
    assert code == 0 and "--training-steps 6 -> 9, " in printed and "at step 6 1e-05, was 0" in printed, printed
    rates = metrics("train/learning_rate")
    assert len(rates) == 9 and np.allclose([rates[step] for step in (8, 9)], 1e-5)
    assert json.loads(Path("runs/on/config.json").read_text())["flags"]["training_steps"] == 9

    code, printed = on("--training-steps", 12, "--schedule-steps", 12, "--min-learning-rate", 1e-5)
    assert code == 0 and "--training-steps 9 -> 12, " in printed, printed
    rates = metrics("train/learning_rate")
    assert len(rates) == 12 and rates[10] > rates[11] > rates[12] > 0


WSD = ["--schedule", "wsd", "--cooldown-steps"]


def test_muon_goes_on_bit_for_bit_within_its_cool_down(train):
    on = ["--name", "on", "--optimizer", "muon", *WSD, 3]
    assert train(*on)[0] == 0
    before = files.read("runs/on").arrays
    interrupt()
    code, printed = train(*on)
    assert code == 0 and "from step 4 of 6" in printed and "--cooldown-steps" not in printed, printed
    for name, array in files.read("runs/on").arrays.items():
        np.testing.assert_array_equal(array, before[name], name)


def test_copies_of_a_run_are_cooled_down_from_any_checkpoint(train):
    stable = ["--schedule", "constant"]
    assert train("--name", "on", *stable)[0] == 0
    shutil.copytree("runs/on", "runs/copy")
    code, printed = train("--name", "copy", "--training-steps", 8)
    assert code == 2 and "--schedule constant -> cosine" in printed, printed
    interrupt(4, "runs/copy")
    for late in ([*WSD, 2, "--training-steps", 5], [*stable, "--training-steps", 3]):
        code, printed = train("--name", "copy", *late)
        assert code == 2 and "--training-steps less --cooldown-steps is 3, and step 3 is over: give" in printed, printed
    code, printed = train("--name", "copy", *WSD, 2, "--training-steps", 7)
    peak = 0.05 * 8 / 256
    assert code == 0 and f"--cooldown-steps 0 -> 2: at step 4 {peak:.3g}, was {peak:.3g}" in printed, printed
    rates = [metrics("train/learning_rate", "runs/copy")[step] for step in (5, 6, 7)]
    np.testing.assert_allclose(rates, [peak, peak, peak * (1 - np.sqrt(0.5))], rtol=1e-6)


def test_flags_of_optimizer_and_rate_that_contradict_each_other_are_refused(train):
    for flags, reason in {
        ("--cooldown-steps", 3): "--cooldown-steps 3: --schedule cosine would ignore it",
        ("--schedule", "constant", "--schedule-steps", 3): "--schedule-steps 3: --schedule constant would ignore it",
        ("--schedule", "constant", "--min-learning-rate", 1): "--min-learning-rate 1.0: --schedule constant would",
        ("--schedule", "wsd"): "--schedule wsd needs --cooldown-steps: a fifth of --training-steps is 1",
        ("--optimizer", "muon", "--mode", "linear"): "--optimizer muon leaves the head, all that a probe trains, to",
        (*WSD, 5): "--warmup-steps 2 and --cooldown-steps 5 are more than --training-steps 6: lower one",
    }.items():
        code, printed = train(*flags)
        assert code == 2 and reason in printed, printed
