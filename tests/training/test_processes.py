"""Several processes on loopback: one run, whatever they are, and a clear end when one of them goes."""

import signal
import time

import numpy as np
import pytest

from maejax.training.checkpoint import saved_steps
from maejax.training.errors import RunError
from maejax.training.processes import join

from . import harness

SGD = ["--optimizer", "sgd", "--learning-rate", 1]  # Adam would blow up the rounding of gradients near zero
STEPS = 30


def test_flags_that_do_not_name_the_processes_are_refused():
    for flags, sentence in (
        (("", 2, 0), "without --coordinator"),
        (("localhost:1234", 2, -1), "without --process-id"),
        (("localhost", 2, 0), "give HOST:PORT"),
        (("localhost:1234", 2, 2), "this one's number, from 0"),
    ):
        with pytest.raises(RunError, match=sentence):
            join(distributed=False, **dict(zip(("coordinator", "num_processes", "process_id"), flags, strict=True)))
    with pytest.raises(RunError, match="with --distributed"):
        join(distributed=True, coordinator="localhost:1234", num_processes=2, process_id=0)


@pytest.mark.slow
def test_one_run_on_one_process_on_two_and_split(tmp_path, images, train):
    """Two processes are told to stop by one, go on with a split state, lose one, and one process ends the run."""
    flags = ["--valid-dataset-shards", images, "--valid-batch-size", 16, "--training-steps", STEPS, *SGD,
             "--eval-interval", 12, "--save-interval", 5]  # fmt: skip
    code, printed = train(*flags, "--name", "alone")
    assert code == 0, printed
    run = tmp_path / "runs/pretrain"

    processes = harness.start_several(tmp_path, images, *flags)
    assert harness.wait_until(lambda: harness.last_step(run) >= 6, *processes), harness.said(processes)
    processes[1].send_signal(signal.SIGTERM)
    (first, first_said), (second, second_said) = map(harness.finish, processes)
    assert first == second == 75, first_said + second_said
    assert "devices  4 x cpu in 2 processes" in first_said
    assert "step 5/30" in first_said and "step 5/30" not in second_said  # one of them speaks
    stopped = harness.last_step(run)
    assert saved_steps(run / "checkpoints")[-1] == stopped < STEPS

    processes = harness.start_several(tmp_path, images, *flags, "--sharding", "fsdp")
    assert harness.wait_until(lambda: harness.last_step(run) >= stopped + 6, *processes), harness.said(processes)
    processes[1].kill()
    dead = time.monotonic()
    assert harness.finish(processes[1])[0] == -signal.SIGKILL
    code, said = harness.finish(processes[0])
    assert time.monotonic() - dead < 60
    # By our sentence, or where the main thread cannot be reached, by JAX's, which aborts.
    assert (code == 1 and "most likely since another process ended" in said) or (
        code == -signal.SIGABRT and "The following tasks are unhealthy" in said
    ), said
    assert f"continuing runs/pretrain from step {stopped}" in said

    code, printed = train(*flags)
    assert code == 0 and "continuing" in printed, printed
    for name in ("train/loss", "train/grad_norm", "val/loss"):
        alone, together = (harness.losses(tmp_path / "runs" / name_, name) for name_ in ("alone", "pretrain"))
        assert alone.keys() == together.keys()
        np.testing.assert_allclose(list(together.values()), list(alone.values()), rtol=2e-6, err_msg=name)
