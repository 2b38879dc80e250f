"""The loop: a failing input loses nothing, what is not finite never reaches the weights, saves by the clock."""

import os
import signal
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from maejax.errors import Failed
from maejax.training.checkpoint import Checkpoints, saved_steps
from maejax.training.log import RunLog, evaluated_at, read_metrics
from maejax.training.loop import Feed, Intervals, RunContext, fit
from maejax.training.mesh import make_mesh
from maejax.training.optim import build_optimizer
from maejax.training.state import create_state, make_step


class Line(nnx.Module):
    """The smallest model."""

    def __init__(self):
        self.kernel = nnx.Param(np.ones(2, np.float32))


class Rows(NamedTuple):
    """The smallest batch."""

    x: Any
    valid: Any


def losses(model, batch, microstep):
    return (batch.x @ model.kernel[...] - 1) ** 2


OPTIMIZER = build_optimizer("sgd", lambda step: 0.1, weight_decay=0.0)
STEP = {on_nan: make_step(losses, OPTIMIZER, lambda step: 0.1, on_nan=on_nan) for on_nan in ("stop", "skip")}


def rows(step):
    x = np.random.default_rng(step).normal(size=(4, 2)).astype(np.float32)
    return Rows(x, np.ones(4, bool))


def good(stop):
    return [rows(step) for step in range(stop)]


def train(folder, batches, stop=6, on_nan="stop", step=None, start=0, position=lambda: None, every=None, **options):
    """Train on given batches; an exception among them is raised in place of a batch. Return the last kernel."""
    mesh = make_mesh()

    def give():
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch

    folder.mkdir(exist_ok=True)
    intervals = Intervals(**{"save": 100, "log": 1, **(every or {})})
    with Checkpoints(folder / "checkpoints") as saves, RunLog(folder, start, stop, Console(quiet=True)) as log:
        state, _ = fit(
            create_state(Line, OPTIMIZER, mesh), step or STEP[on_nan], Feed(give(), 4, position),
            RunContext(start, stop, intervals, saves, log), mesh=mesh, **options,
        )  # fmt: skip
    return np.asarray(state.model.kernel[...])


def restored(folder):
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, step, data = checkpoints.restore(create_state(Line, OPTIMIZER, make_mesh()))
    return np.asarray(state.model.kernel[...]), step, data


def test_an_input_that_fails_loses_no_step(tmp_path):
    taken = []
    with pytest.raises(OSError, match="the disk is gone"):
        train(tmp_path, [*good(4), OSError("the disk is gone")], position=lambda: taken.append(0) or len(taken))
    kernel, step, data = restored(tmp_path)
    assert step == 4 and data == 6  # asked before each of four batches, before the fifth, and before saving
    np.testing.assert_array_equal(kernel, train(tmp_path / "whole", good(4), stop=4))
    assert len(read_metrics(tmp_path / "metrics.jsonl", "train/loss")) == 4


def test_more_signals_do_not_end_the_save_that_the_first_asked_for(tmp_path, monkeypatch):
    """As SLURM sends SIGTERM when it wants the nodes, and again before it kills."""
    finish, late = Checkpoints._finish, []
    before = signal.signal(signal.SIGTERM, lambda *_: late.append(1))

    def ask(batches):
        for batch in batches:
            os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def slow(self, saving):
        os.kill(os.getpid(), signal.SIGTERM)
        finish(self, saving)

    monkeypatch.setattr(Checkpoints, "_finish", slow)
    try:
        train(tmp_path, ask(good(6)))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not late and saved_steps(tmp_path / "checkpoints") == [1]


def test_an_input_that_fails_at_once_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        train(tmp_path, [OSError("the disk is gone")])
    assert saved_steps(tmp_path / "checkpoints") == []


def test_an_evaluation_that_fails_loses_no_step(tmp_path):
    def evaluate(state, step, watch):
        for _ in watch(iter([1])):
            raise OSError("the validation images are gone")

    with pytest.raises(OSError, match="images are gone"):
        train(tmp_path, good(6), evaluate=evaluate, every={"evaluate": (4,)})
    kernel, step, _ = restored(tmp_path)
    assert step == 4
    np.testing.assert_array_equal(kernel, train(tmp_path / "whole", good(4), stop=4))


def test_a_stop_in_an_evaluation_ends_it_within_a_batch_and_it_is_made_later(tmp_path):
    seen = []

    def evaluate(state, step, watch, stop_at=1):
        for batch in watch(range(100)):
            seen.append((step, batch))
            if batch == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
        return {"val/loss": 1.0}

    options = {"evaluate": evaluate, "every": {"evaluate": (4,)}}
    train(tmp_path, good(6), **options)
    assert seen == [(4, 0), (4, 1)] and restored(tmp_path)[1] == 4
    assert not evaluated_at(tmp_path / "metrics.jsonl", 4)
    del seen[:]

    def whole(state, step, watch):
        return evaluate(state, step, watch, stop_at=None)

    options |= {"evaluate": whole, "start": 4, "evaluated": False}
    train(tmp_path, [rows(4), rows(5)], **options)
    assert len(seen) == 200 and seen[0] == (4, 0) and seen[-1] == (6, 99)
    assert all(evaluated_at(tmp_path / "metrics.jsonl", step) for step in (4, 6))


def bad():
    return rows(9)._replace(x=np.full((4, 2), np.inf, np.float32))


def test_a_loss_that_is_not_finite_stops_before_it_does_harm(tmp_path):
    seen = []

    def explain(state, step, batch):
        seen.append((np.asarray(state.model.kernel[...]), step, batch.x))
        return "because"

    with pytest.raises(Failed, match=r"the loss is (nan|inf) at step 4, .*; because; checkpoint 2 is kept"):
        train(tmp_path, [*good(3), bad(), *good(9)], stop=9, every={"save": 2}, explain=explain)
    assert saved_steps(tmp_path / "checkpoints") == [2]
    ((kernel, step, x),) = seen
    np.testing.assert_array_equal(kernel, train(tmp_path / "whole", good(3), stop=3))
    assert step == 4 and np.isinf(x).all()


def test_a_loss_that_is_not_finite_can_be_skipped(tmp_path):
    kernel = train(tmp_path, [*good(3), bad(), *good(5)[3:]], on_nan="skip")
    np.testing.assert_array_equal(kernel, train(tmp_path / "whole", good(5), stop=5))
    assert [step for step, _ in read_metrics(tmp_path / "metrics.jsonl", "train/loss")] == [1, 2, 3, 5, 6]
    train(tmp_path / "sparse", [*good(2), bad(), *good(9)[3:]], stop=9, on_nan="skip", every={"log": 4})
    rates = read_metrics(tmp_path / "sparse/metrics.jsonl", "train/images_per_second")
    assert [step for step, _ in rates] == [4, 8, 9]  # a skipped step is named, but is no interval to measure over
    with pytest.raises(Failed, match="10 steps in a row"):
        train(tmp_path / "bad", [bad()] * 20, stop=20, on_nan="skip")


def test_nothing_is_compiled_after_the_first_step(tmp_path):
    step = make_step(losses, OPTIMIZER, lambda step: 0.1)
    train(tmp_path, good(6), step=step, every={"save": 2})
    assert step._cache_size() == 1


def test_saves_also_go_by_the_clock(tmp_path):
    train(tmp_path, good(6), every={"minutes": 1e-9, "save": 4})
    assert saved_steps(tmp_path / "checkpoints") == [4, 5, 6]  # at every step, of which three are kept


def test_nothing_moves_between_host_and_device_unasked(tmp_path):
    def careless():
        yield rows(0)
        jax.jit(lambda x: x + 1)(np.ones(3))

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train(tmp_path, careless())
