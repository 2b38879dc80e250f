"""The loop that every task runs: evaluate, save, take the next batch, step, log."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.distributed.processes import first_line, lost_peers, name_of
from maejax.errors import Failed, Stopped
from maejax.training.checkpoint import Checkpoints
from maejax.training.consensus import Agreement, stop_requests
from maejax.training.log import RunLog
from maejax.training.mesh import gather, put_batch
from maejax.training.meter import Meter
from maejax.training.state import HALT, SAVE, STOP, Control, Packed, TrainState
from maejax.training.stragglers import Pace, describe
from maejax.training.trace import Trace

QUEUED = 2  # steps handed to the device before the first of them is done; each holds a batch in its memory
ADVICE = "try a lower --learning-rate, --clip-grad 1, or --on-nan skip"
SKIPPED = 10  # steps in a row without a finite loss after which `--on-nan skip` gives up


class Running(NamedTuple):
    """A step that the device works on: its number (that of the state after it), what it was given, what it returns.

    `rows` are those of this host, `position` that of the input before they were taken.
    """

    step: int
    rows: dict[str, np.ndarray]
    position: Any
    metrics: dict[str, jax.Array]
    control: Control


Watch = Callable[[Iterable], Iterator]


class Evaluate(Protocol):
    """Evaluates a state, and returns metrics for the log.

    `watch` is to be laid around its batches, of which every process has as many: it ends them where a process is asked
    to stop or where the batches of one fail.
    """

    def __call__(self, state: TrainState, step: int, watch: Watch) -> dict[str, float]: ...  # noqa: D102


def fit(
    state: TrainState,
    step_fn: Callable,
    batches: Iterator[dict[str, np.ndarray]],
    *,
    mesh: Mesh,
    start: int,
    stop: int,
    batch_size: int,
    checkpoints: Checkpoints,
    log: RunLog,
    save_interval: int,
    log_interval: int,
    save_minutes: float = 0,
    evaluate: Evaluate | None = None,
    eval_interval: int = 0,
    evaluated: bool = True,
    flop: float = 0,
    extra: Callable[[], dict[str, float]] = dict,
    position: Callable[[], Any] = lambda: None,
    merge: Callable[[list[Any]], Any] = lambda positions: positions[0],
    explain: Callable[[TrainState, int, dict[str, np.ndarray]], str] = lambda *_: "",
    trace: Trace | None = None,
) -> tuple[TrainState, bool]:
    """Train from step `start` to `stop`, saving and logging on the way. Several processes run this together.

    Args:
        state: at step `start`; its memory is given up.
        step_fn: `(state, batch, control, asks) -> (state, metrics, control)` on a `Packed` state, see `make_step`.
        batches: this host's rows of the global batches `start`, `start` + 1, ...
        mesh: the devices.
        start, stop: steps.
        batch_size: global, for the rates.
        checkpoints, log: of the run.
        save_interval, log_interval, eval_interval: in steps; `eval_interval` 0 evaluates at the end alone.
        save_minutes: also save when the last save is so long ago; 0 switches it off.
        evaluate: gives metrics, written to the log.
        evaluated: whether the state at `start` needs no evaluation, even if it is the turn of its step.
        flop: that of one image in one step, for the share of the devices' peak; 0 leaves it out.
        extra: more metrics for every log line, of the host's.
        position: of this host's `batches`, anything that JSON holds.
        merge: makes one of the positions of all processes, which every checkpoint holds as its `data`.
        explain: `(state, step, rows) -> sentences` on why the step after `state` gave no finite loss or gradient.
        trace: what is to be profiled.

    Returns:
        The last state, and whether all is done (False: a signal asked to stop; the state was saved).

    Raises:
        Failed: the loss or gradient is not finite, another process ended, or its input failed.
        Exception: what `batches` or `evaluate` raised, after the state was saved.

    """
    meter = Meter(batch_size, stop, flop)
    agreement = Agreement(mesh)
    pace, slow = Pace(mesh), None
    packed = Packed.of(state)
    running: deque[Running] = deque()
    skipped, halted_at = 0, None

    def finish_one():
        """Wait for the oldest step, and act on what it tells."""
        nonlocal skipped, halted_at, slow
        done = running.popleft()
        with pace.waiting("device"):
            asked, bad, halted = jax.device_get(done.control)
        agreement.hear(asked)
        if halted and agreement.has(HALT):
            halted_at = halted_at or done
            return
        usual = done.step % log_interval == 0 or done.step in (start + 1, stop)
        if bad or usual:
            metrics = {name: float(value) for name, value in jax.device_get(done.metrics).items()}
            if bad and halted:
                checkpoints.wait()
                with jax.transfer_guard("allow"):
                    reason = explain(packed.state, done.step, done.rows)
                raise Failed(f"{not_finite(metrics, done.step)}; {reason}; {kept(checkpoints)}; {ADVICE}")
            if bad:
                log.say(f"{not_finite(metrics, done.step)}; no update was made")
            metrics |= {"processed_samples": done.step * batch_size, **extra()}
            if usual:
                metrics |= meter.read(done.step)  # over a whole interval: two steps alone give no rate
            before, slow = slow, pace.exchange()
            if slow is not None:
                metrics |= {"hosts/slowest": slow.process, "hosts/lag": slow.lag}
                if before is None or before.process != slow.process:
                    log.say(describe(slow, name_of(slow.process)))
            log.report(done.step, metrics)
        skipped = skipped + 1 if bad else 0
        if skipped == SKIPPED:
            checkpoints.wait()
            raise Failed(f"{SKIPPED} steps in a row gave no finite loss or gradient; {kept(checkpoints)}; {ADVICE}")

    def settle():
        while running:
            finish_one()

    with jax.set_mesh(mesh), stop_requests() as stop_asked, named_peers(checkpoints):
        step, control = start, agreement.first_control()
        rows, failure, saved_at = {}, None, time.monotonic()
        while True:
            here, done = position(), step == stop
            if stop_asked.is_set():
                agreement.ask(STOP)
            if save_minutes and jax.process_index() == 0 and time.monotonic() - saved_at > 60 * save_minutes:
                agreement.ask(SAVE)
            turn = done or (eval_interval and step % eval_interval == 0)
            due = evaluate is not None and turn and (step > start or not evaluated)
            if due or done or agreement.any() or step % save_interval == 0:
                settle()  # may bring to light what other processes ask for
            if agreement.has(HALT):
                step = int(jax.device_get(packed.state.step))
                here = here if halted_at is None else halted_at.position
                checkpoints.save(packed.state, step, merge(gather(here, mesh)))
                checkpoints.wait()
                raise failure or Failed(f"the input of another process failed; step {step} was saved")
            judged, fault = not due, None
            if due and evaluate is not None and not agreement.has(STOP):
                found = None
                try:
                    found = evaluate(packed.state, step, partial(agreement.watch, stop=stop_asked))
                except Stopped:
                    pass  # whoever goes on with this run evaluates
                except Exception as error:  # whatever it is: the state is saved before it goes its way
                    if isinstance(error, jax.errors.JaxRuntimeError) and jax.process_count() > 1:
                        raise  # another process is gone, and nothing can be saved without it
                    fault = error
                if not agreement.has(STOP) and any(gather(fault is not None, mesh)):
                    fault = fault or Failed("the evaluation failed in another process")
                elif found is not None:
                    log.write(step, found)
                    judged = True
                meter.restart(step)
                pace.restart()
            if done or agreement.any() or fault or (step > start and step % save_interval == 0):
                checkpoints.save(packed.state, step, merge(gather(here, mesh)))
                saved_at = time.monotonic()
                agreement.clear(SAVE)
            if fault is not None:
                checkpoints.wait()
                log.say(f"the evaluation of step {step} failed; {kept(checkpoints)}")
                raise fault
            if done or agreement.has(STOP):
                return packed.state, done and judged
            if trace is not None and trace.turns(step):
                settle()
                trace.turn(step)
            with jax.transfer_guard("disallow"):
                before = time.monotonic()
                try:
                    with pace.waiting("input"):
                        rows = next(batches) if failure is None else rows
                except Exception as error:  # whatever it is: the state is saved before it goes its way
                    if not rows:
                        raise  # nothing was done yet
                    failure, rows = error, {name: np.zeros_like(values) for name, values in rows.items()}
                    agreement.ask(HALT)  # other processes are at this step, so it is made, but counts for nothing
                if agreement.has(HALT):
                    continue
                last: Any = running[-1].control.bad if running else None
                if last is not None and last.is_ready():  # else the device had work while the host waited
                    meter.wait(time.monotonic() - before)
                if len(running) == QUEUED:
                    finish_one()
                batch, asks = put_batch(rows, mesh), agreement.asks()
                with pace.waiting("device"):
                    packed, metrics, control = step_fn(packed, batch, control, asks)
                step += 1
                running.append(Running(step, rows, here, metrics, control))
            if step == start + 1:
                jax.block_until_ready(metrics)
                meter.restart(step)  # compilation is no part of the rate
                pace.restart()
            log.advance(step)


def not_finite(metrics: dict[str, float], step: int) -> str:
    """Say what is not finite at a step."""
    return f"the loss is {metrics['train/loss']} at step {step}, the gradient's norm {metrics['train/grad_norm']}"


def kept(checkpoints: Checkpoints) -> str:
    """Say what a run that ends leaves."""
    latest = checkpoints.latest
    return "nothing was saved before" if latest is None else f"checkpoint {latest} is kept"


@contextmanager
def named_peers(checkpoints: Checkpoints):
    """Turn the error that a dead process causes in the others into a sentence.

    Raises:
        Failed: instead of JAX's error, where there are several processes.

    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        why = lost_peers(seconds=2) or "most likely another process ended"
        raise Failed(
            f"{name_of(jax.process_index())} cannot go on, for {why}: "
            f"{first_line(error)}; {kept(checkpoints)}; start the same command again on every host to go on from there"
        ) from error
