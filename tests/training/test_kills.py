"""Killed at any moment, the same command goes on bit for bit. MAEJAX_KILLS says how often; `make faults` says 24."""

import os
import random
import signal

import numpy as np
import pytest

from maejax.training.checkpoint import saved_steps

from . import harness

KILLS = int(os.environ.get("MAEJAX_KILLS", "2"))
STEPS = 12 * KILLS
FLAGS = ["--training-steps", STEPS, "--save-interval", 4, "--eval-interval", 6, "--dropout", 0.1, "--droppath", 0.1]


def meet(process, folder, run, moment, randomness):
    """Wait for a moment in the life of a training process; False if it ended before."""
    if moment == "save":
        return harness.wait_until(lambda: any((run / "checkpoints").glob("*.orbax-checkpoint-tmp")), process)
    if moment == "validation":
        return harness.wait_until((folder / "validating").exists, process)
    target = harness.last_step(run) + randomness.randint(1, 9)
    return harness.wait_until(lambda: harness.last_step(run) >= target, process)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_bit_for_bit(tmp_path, images):
    """SIGTERM and SIGKILL in training, in a save and in a validation; then with other numbers of loader threads."""
    randomness = random.Random(KILLS)
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    for folder in folders.values():
        folder.mkdir()
    flags = [*FLAGS, "--valid-dataset-shards", images]
    code, printed = harness.finish(harness.start(folders["whole"], images, *flags))
    assert code == 0, printed

    folder, run = folders["killed"], folders["killed"] / "runs/pretrain"
    moments = ["save", "validation", "training"]
    kills = []
    for i in range(100 * KILLS):
        (folder / "validating").unlink(missing_ok=True)
        process = harness.start(folder, images, *flags, "--train-loader-workers", i % 3)
        # What stopped the last process may still be there: the moment is to come after it has begun.
        before = harness.last_step(run)
        harness.wait_until(lambda before=before: harness.last_step(run) != before, process)
        number = [signal.SIGKILL, signal.SIGTERM][(len(kills) + 1) // 2 % 2]
        if len(kills) < KILLS and meet(process, folder, run, moments[len(kills) % 3], randomness):
            process.send_signal(number)
            kills.append((moments[len(kills) % 3], number.name))
        code, printed = harness.finish(process)
        assert code in (0, 75, -signal.SIGKILL), printed
        if code == 0:
            break
    print(kills)
    assert len(kills) == KILLS
    whole = folders["whole"] / "runs/pretrain"
    for name in ("train/loss", "train/grad_norm", "val/loss", "val/loss/best"):
        assert harness.losses(run, name) == harness.losses(whole, name)
    assert len(harness.losses(run)) == STEPS
    batches = [(folders[name] / "batches.txt").read_text().split() for name in ("whole", "killed")]
    assert set(batches[0]) == set(batches[1]) and len(batches[1]) > len(batches[0]) == STEPS
    assert saved_steps(run / "best") == saved_steps(whole / "best")
    for part in ("checkpoints", "best"):
        ours, theirs = harness.arrays_of(run / part), harness.arrays_of(whole / part)
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
