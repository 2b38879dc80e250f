"""The loop that every task runs: evaluate, save, take the next batch, step, log."""

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.training.checkpoint import Checkpoints
from maejax.training.errors import TrainingError
from maejax.training.log import RunLog
from maejax.training.mesh import put_batch
from maejax.training.state import TrainState

QUEUED = 2  # steps handed to the device before the first of them is done; each holds a batch in its memory


@contextmanager
def stop_requests():
    """Turn the first Ctrl-C or SIGTERM into a set event, so that the loop can save; a second Ctrl-C kills."""
    stop = threading.Event()

    def ask(number, _frame):
        stop.set()
        signal.signal(number, before[number])

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Meter:
    """Images per second, and the share of the time in which the device had to wait for input, between two readings."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin to count at a step."""
        self._clock, self._waited, self._since = time.monotonic(), 0.0, step

    def wait(self, seconds: float) -> None:
        """Add time in which the device was idle for want of a batch."""
        self._waited += seconds

    def read(self, step: int) -> dict[str, float]:
        """Return the rates since the last reading, and begin anew; nothing where no step was made."""
        elapsed, steps, waited = time.monotonic() - self._clock, step - self._since, self._waited
        self.restart(step)
        if steps <= 0:
            return {}
        return {"train/images_per_second": steps * self.batch_size / elapsed, "train/input_wait": waited / elapsed}


def check_finite(loss: float, step: int, kept: int | None) -> None:
    """Stop a run whose loss went wrong.

    Raises:
        TrainingError: the loss is not a finite number; the message names the step and the checkpoint that is kept.

    """
    if not math.isfinite(loss):
        saved = "nothing was saved before" if kept is None else f"checkpoint {kept} is kept"
        raise TrainingError(
            f"the loss is {loss} at step {step}; {saved}; try a lower --learning-rate, or --clip-grad 1"
        )


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
    evaluate: Callable[[TrainState, int], dict[str, float]] | None = None,
    eval_interval: int = 0,
    extra: Callable[[], dict[str, float]] = dict,
) -> tuple[TrainState, bool]:
    """Train from step `start` to `stop`, saving and logging on the way.

    Args:
        state: at step `start`; its memory is given up.
        step_fn: `(state, batch) -> (state, metrics)`, compiled.
        batches: this host's rows of the global batches `start`, `start` + 1, ...
        mesh: the devices.
        start, stop: steps.
        batch_size: global, for the rates.
        checkpoints, log: of the run.
        save_interval, log_interval, eval_interval: in steps; `eval_interval` 0 evaluates at the end alone.
        evaluate: `(state, step) -> metrics`, written to the log.
        extra: more metrics for every log line, of the host's.

    Returns:
        The last state, and whether it is at `stop` (False: a signal asked to stop; the state was saved).

    Raises:
        TrainingError: the loss is no longer finite.

    """
    meter = Meter(batch_size)
    pending: deque[tuple[int, dict]] = deque()  # metrics that are to be logged
    running: deque[dict] = deque()  # metrics of the steps that the device is working on

    def report():
        while pending:
            step, metrics = pending.popleft()
            values = {name: float(value) for name, value in jax.device_get(metrics).items()}
            check_finite(values["train/loss"], step, checkpoints.latest)
            log.report(step, {**values, **meter.read(step), "processed_samples": step * batch_size, **extra()})

    with jax.set_mesh(mesh), stop_requests() as asked:
        step = start
        while True:
            done = step == stop
            if evaluate is not None and step > start and (done or (eval_interval and step % eval_interval == 0)):
                report()
                log.write(step, evaluate(state, step))
                meter.restart(step)
            if done or asked.is_set() or (step > start and step % save_interval == 0):
                report()
                checkpoints.save(state, step)
            if done or asked.is_set():
                return state, done
            before = time.monotonic()
            rows = next(batches)
            if running and running[-1]["train/loss"].is_ready():  # else the device had work while the host waited
                meter.wait(time.monotonic() - before)
            if len(running) == QUEUED:
                jax.block_until_ready(running.popleft())
            state, metrics = step_fn(state, put_batch(rows, mesh))
            running.append(metrics)
            step += 1
            report()  # of an earlier step: the host fetches while the device works on this one
            if step == start + 1:
                jax.block_until_ready(metrics)
                meter.restart(step)  # compilation is no part of the rate
            if step % log_interval == 0 or step == start + 1 or step == stop:
                pending.append((step, metrics))
            log.advance(step)
