"""A disk that is full for one process of several: all hear of it, none waits for long, and training goes on."""

import pytest

from maejax.training.checkpoint import saved_steps

from . import harness


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["NO_ROOM", "FULL_DISK"])
def test_one_full_disk_of_two_costs_one_save(tmp_path, images, fault):
    """NO_ROOM: known before the save. FULL_DISK: found out by writing, while the other process waits for it."""
    flags = ["--training-steps", 12, "--save-interval", 4, "--optimizer", "sgd"]
    processes = harness.start_several(tmp_path, images, *flags, count=2, devices=1, **{fault: 4})
    ended = [harness.finish(process) for process in processes]
    assert [code for code, _ in ended] == [0, 0], ended
    run = tmp_path / "runs/pretrain"
    assert saved_steps(run / "checkpoints") == [8, 12] and len(harness.losses(run)) == 12
    for _, said in ended:
        assert "checkpoint 4 in" in said and "training goes on" in said, said
        assert fault == "FULL_DISK" or "no room on the disk of process 1 (0 MiB free)" in said, said
