"""The loop of every task: evaluate, save, take the next batch, step, log."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.distributed.processes import first_line, lost_peers, name_of
from maejax.errors import Failed, Stopped
from maejax.training.checkpoint import Checkpoints
from maejax.training.consensus import Agreement, stop_requests
from maejax.training.log import RunLog
from maejax.training.mesh import gather, put_rows
from maejax.training.meter import Meter, WaitTimes, describe
from maejax.training.state import HALT, SAVE, STOP, Control, FlatState, TrainState
from maejax.training.trace import Trace

QUEUED = 2  # steps handed to the device before the first of them is done; each holds a batch in its memory
ADVICE = "try a lower --learning-rate, --clip-grad 1, or --on-nan skip"
SKIPPED = 10  # steps in a row without a finite loss after which `--on-nan skip` gives up

Watch = Callable[[Iterable], Iterator]
# `(state, step, watch) -> metrics`. It wraps its batches, of which all processes have the same number, in `watch`,
# which ends them on all processes when one is told to stop or fails.
Evaluate = Callable[[TrainState, int, Watch], dict[str, float]]
# `(state, step, rows) -> sentences` on why the step after `state` gave no finite loss or gradient.
Explain = Callable[[TrainState, int, Any], str]


class Intervals(NamedTuple):
    """Steps between saves, log lines and evaluations of each kind, and `minutes` between saves.

    With 0 steps the last state alone is evaluated; with `minutes` 0 time does not count.
    """

    save: int
    log: int
    evaluate: tuple[int, ...] = (0,)
    minutes: float = 0


class RunContext(NamedTuple):
    """A run from step `start` to `stop`: where it writes, and how often."""

    start: int
    stop: int
    intervals: Intervals
    checkpoints: Checkpoints
    log: RunLog
    trace: Trace | None = None

    def evaluates(self, step: int) -> bool:
        """Return whether the state at a step is to be evaluated."""
        return any(is_due(step, interval, self.stop) for interval in self.intervals.evaluate)


def is_due(step: int, interval: int, *stops: int) -> bool:
    """Return whether an evaluation every `interval` steps, 0 for none, and at the stops is due at a step."""
    return step in stops or (interval > 0 and step % interval == 0)


class Feed(NamedTuple):
    """Rows of this host in the global batches `start`, `start` + 1, ..., each of `batch_size` images in all.

    `position` returns where the input stands, as JSON holds it. `merge` makes one position of those of all processes.
    `metrics` returns what the host adds to every log line.
    """

    batches: Iterator[Any]
    batch_size: int
    position: Callable[[], Any] = lambda: None
    merge: Callable[[list[Any]], Any] = lambda positions: positions[0]
    metrics: Callable[[], dict[str, float]] = dict


class Running(NamedTuple):
    """A step that the device works on: its number, this host's rows, their position in the input, and its results."""

    step: int
    rows: Any
    position: Any
    metrics: dict[str, jax.Array]
    control: Control


def fit(
    state: TrainState,
    step_fn: Callable,
    feed: Feed,
    run: RunContext,
    *,
    mesh: Mesh,
    evaluate: Evaluate | None = None,
    evaluated: bool = True,
    explain: Explain = lambda *_: "",
    flop: float = 0,
) -> tuple[TrainState, bool]:
    """Train a state from step `run.start` to `run.stop`; its memory is given up. All processes call this together.

    Returns the last state, and whether all is done. If not, a signal or a callback of the log asked to stop, and the
    state was saved.
    `step_fn` is that of `make_step`. If `evaluated`, the state at `run.start` needs no evaluation. `flop` is that of an
    image in one step, for the share of the devices' peak; 0 leaves it out.

    The order evaluate, save, next batch, step, log must not change:

    - Evaluate before save: an evaluation that fails or is stopped is then followed by a save. The metrics of a saved
      step are in the log before its checkpoint.
    - Save before the next batch: the position in a checkpoint is then that of the first batch unknown to the state.
    - Log last, and up to two steps late: the device then never waits for the host. All processes read the same results
      at the same step, so all of them stop, save or halt there.

    Raises Failed if the loss or gradient is not finite, another process ended, or its input failed. Raises what
    `feed` or `evaluate` raised, after the state was saved.
    """
    intervals, agreement = run.intervals, Agreement(mesh)
    flight, reader = InFlight(run, feed, mesh, agreement, explain, flop), Reader(feed.batches, agreement)
    flat, step, saved_at = FlatState.of(state), run.start, time.monotonic()
    with jax.set_mesh(mesh), stop_requests() as stop, named_peers(run.checkpoints):
        control = agreement.first_control()
        while True:
            position, last = feed.position(), step == run.stop
            if stop.is_set() or run.log.stop_asked:
                agreement.ask(STOP)
            if intervals.minutes and jax.process_index() == 0 and time.monotonic() - saved_at > 60 * intervals.minutes:
                agreement.ask(SAVE)
            due = evaluate is not None and run.evaluates(step) and (step > run.start or not evaluated)
            if due or last or agreement.agreed.any() or step % intervals.save == 0:
                flight.finish(flat)  # may bring requests of other processes
            if agreement.agreed[HALT]:
                step = int(jax.device_get(flat.state.step))
                position = position if flight.halted is None else flight.halted.position
                run.checkpoints.save(flat.state, step, feed.merge(gather(position, mesh)))
                run.checkpoints.wait()
                raise reader.failure or Failed(f"the input of another process failed; step {step} was saved")

            found, fault = None, None
            if due and evaluate is not None and not agreement.agreed[STOP]:
                evaluate_all = partial(evaluate, flat.state, step, partial(agreement.watch, stop=stop))
                found, fault = try_to_evaluate(evaluate_all, agreement, mesh)
                if found is not None:
                    run.log.write(step, found)
                flight.restart_clocks(step)

            if last or agreement.agreed.any() or fault or (step > run.start and step % intervals.save == 0):
                run.checkpoints.save(flat.state, step, feed.merge(gather(position, mesh)))
                saved_at = time.monotonic()
                agreement.clear(SAVE)
            if fault is not None:
                run.checkpoints.wait()
                run.log.message(f"the evaluation of step {step} failed; {kept(run.checkpoints)}")
                raise fault
            if agreement.agreed[STOP]:
                run.checkpoints.wait()  # here, where another SIGTERM does not end the process
            if last or agreement.agreed[STOP]:
                return flat.state, last and (not due or found is not None)
            if run.trace is not None and step in run.trace.ends:
                flight.finish(flat)
                run.trace.start_or_stop(step)

            with jax.transfer_guard("disallow"):
                with flight.waiting_for_input():
                    rows = reader.next()
                if agreement.agreed[HALT]:
                    continue
                flight.finish(flat, leave=QUEUED - 1)
                batch, requests = put_rows(rows, mesh), agreement.requests()
                with flight.waits.waiting("device"):
                    flat, metrics, control = step_fn(flat, batch, control, requests)
                step += 1
                flight.running.append(Running(step, rows, position, metrics, control))
            if step == run.start + 1:
                jax.block_until_ready(metrics)
                flight.restart_clocks(step)  # compilation is no part of the rate
            run.log.advance(step)


class InFlight:
    """The steps that the device works on, and the results of those that it has finished.

    `halted` is the first step that counted for nothing because a process had no batch for it. `skipped` is the number
    of the last steps in a row whose loss or gradient was not finite.
    """

    def __init__(self, run: RunContext, feed: Feed, mesh: Mesh, agreement: Agreement, explain: Explain, flop: float):
        self._run, self._feed, self._agreement, self._explain = run, feed, agreement, explain
        self._meter, self.waits, self._slow = Meter(feed.batch_size, run.log.stop, flop), WaitTimes(mesh), None
        self.running: deque[Running] = deque()
        self.halted: Running | None = None
        self.skipped = 0

    def restart_clocks(self, step: int) -> None:
        """Measure rates and waiting from a step on."""
        self._meter.restart(step)
        self.waits.restart()

    @contextmanager
    def waiting_for_input(self):
        """Count the time in a `with` as waiting for input, and as idle time if the device has no work after it."""
        before = time.monotonic()
        with self.waits.waiting("input"):
            yield
        newest: Any = self.running[-1].control.bad if self.running else None
        if newest is not None and newest.is_ready() and not self._agreement.agreed[HALT]:
            self._meter.wait(time.monotonic() - before)

    def finish(self, flat: FlatState, leave: int = 0) -> None:
        """Wait for the oldest steps until `leave` are left, and act on their results; `flat` is the newest state."""
        while len(self.running) > leave:
            self._finish_one(flat)

    def _finish_one(self, flat: FlatState) -> None:
        done, run = self.running.popleft(), self._run
        with self.waits.waiting("device"):
            requested, bad, halted = jax.device_get(done.control)
        self._agreement.agreed |= requested > 0
        if halted and self._agreement.agreed[HALT]:
            self.halted = self.halted or done
            return
        regular = done.step % run.intervals.log == 0 or done.step in (run.start + 1, run.stop)
        if bad or regular:
            metrics = {name: float(value) for name, value in jax.device_get(done.metrics).items()}
            if bad and halted:
                run.checkpoints.wait()
                with jax.transfer_guard("allow"):
                    reason = self._explain(flat.state, done.step, done.rows)
                raise Failed(f"{not_finite(metrics, done.step)}; {reason}; {kept(run.checkpoints)}; {ADVICE}")
            if bad:
                run.log.message(f"{not_finite(metrics, done.step)}; no update was made")
            self._report(done.step, metrics, regular)
        self.skipped = self.skipped + 1 if bad else 0
        if self.skipped == SKIPPED:
            run.checkpoints.wait()
            raise Failed(f"{SKIPPED} steps in a row gave no finite loss or gradient; {kept(run.checkpoints)}; {ADVICE}")

    def _report(self, step: int, metrics: dict[str, float], regular: bool) -> None:
        metrics |= {"processed_samples": step * self._feed.batch_size, **self._feed.metrics()}
        if regular:
            metrics |= self._meter.read(step)  # over a whole interval: two steps alone give no rate
        before, self._slow = self._slow, self.waits.exchange()
        if self._slow is not None:
            metrics |= {"hosts/slowest": self._slow.process, "hosts/lag": self._slow.lag}
            if before is None or before.process != self._slow.process:
                self._run.log.message(describe(self._slow, name_of(self._slow.process)))
        self._run.log.report(step, metrics)


class Reader:
    """Takes batches until one fails; `failure` is then what was raised, and all processes are asked to halt.

    The failed batch is replaced by zeros: other processes are at this step, so it is made, but counts for nothing.
    """

    def __init__(self, batches: Iterator[Any], agreement: Agreement):
        self._batches, self._agreement, self._rows, self.failure = batches, agreement, None, None

    def next(self) -> Any:
        """Return the next rows of this host; raises what `batches` raises if none came before."""
        try:
            if self.failure is None:
                self._rows = next(self._batches)
        except Exception as error:  # whatever it is: the state is saved before it goes its way
            if self._rows is None:
                raise
            self.failure, self._rows = error, jax.tree.map(np.zeros_like, self._rows)
            self._agreement.ask(HALT)
        return self._rows


def try_to_evaluate(
    evaluate: Callable[[], dict[str, float]], agreement: Agreement, mesh: Mesh
) -> tuple[dict[str, float] | None, Exception | None]:
    """Evaluate a state; return its metrics, and the error if the evaluation failed in any process.

    After a stop both results are None: a resumed run evaluates. The error is returned so that the state can be
    saved first. JAX's own is raised if another process is gone: nothing can be saved without it.
    """
    found, fault = None, None
    try:
        found = evaluate()
    except Stopped:
        pass
    except Exception as error:  # whatever it is: the state is saved before it goes its way
        if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
            raise
        fault = error
    if not agreement.agreed[STOP] and any(gather(fault is not None, mesh)):
        return None, fault or Failed("the evaluation failed in another process")
    return found, fault


def not_finite(metrics: dict[str, float], step: int) -> str:
    """Return a sentence on what is not finite at a step."""
    return f"the loss is {metrics['train/loss']} at step {step}, the gradient's norm {metrics['train/grad_norm']}"


def kept(checkpoints: Checkpoints) -> str:
    """Return a sentence on what a run that ends leaves."""
    latest = checkpoints.latest
    return "nothing was saved before" if latest is None else f"checkpoint {latest} is kept"


@contextmanager
def named_peers(checkpoints: Checkpoints):
    """Turn JAX's error about a dead process into a sentence; raises Failed if there are several processes."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        why = f"{lost_peers(seconds=2) or 'most likely another process ended'}: {first_line(error)}"
        remedy = f"{kept(checkpoints)}; start the same command again on every host to go on from there"
        raise Failed(f"{name_of(jax.process_index())} cannot go on, for {why}; {remedy}") from error
