"""Stragglers: a process that holds up the others is found by how long each waits."""

import time
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.training.mesh import by_process, put_rows, replicate

LAG = 0.25  # of the time, from which a process is called slow


class Slow(NamedTuple):
    """A process that holds up the others: for which part of the time, and for which part it waited for input."""

    process: int
    lag: float
    input: float


class WaitTimes:
    """The time that each process waits for its device and for its input, exchanged at every log line.

    All processes make the same step at the same time, so the time of a step does not show who is slow. But a process
    that is slow by itself (its input, its disk, another program) never waits for its device; the others do, for it. A
    slow device does not show here. Results are one log interval late, so no device waits.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._sent = mesh, None
        self.restart()

    def restart(self) -> None:
        """Count from now on."""
        self._begun, self._spent = time.monotonic(), {"device": 0.0, "input": 0.0}

    @contextmanager
    def waiting(self, what: str):
        """Count the time in a `with` as waiting for the `device`, or for the `input`."""
        begun = time.monotonic()
        yield
        self._spent[what] += time.monotonic() - begun

    def exchange(self) -> Slow | None:
        """Send this process's times, and return who was slow before the last call; all call this together."""
        if jax.process_count() == 1:
            return None
        elapsed = max(1e-9, time.monotonic() - self._begun)
        waited = np.array([[self._spent["device"] / elapsed, self._spent["input"] / elapsed]], np.float32)
        received = None if self._sent is None else jax.device_get(self._sent.addressable_data(0))
        self._sent = replicate(put_rows(np.tile(waited, (len(self._mesh.local_devices), 1)), self._mesh), self._mesh)
        self.restart()
        return None if received is None else find_slow(by_process(received, self._mesh))


def find_slow(waited: np.ndarray) -> Slow | None:
    """Find who holds up the others by the parts of the time [processes, 2] that each waited for device and input."""
    own = 1 - waited[:, 0]
    slowest = int(own.argmax())
    lag = float(own[slowest] - np.median(np.delete(own, slowest)))
    return Slow(slowest, lag, float(waited[slowest, 1])) if lag > LAG else None


def describe(slow: Slow, name: str) -> str:
    """Return a sentence on who is slow, and why."""
    why = "by waiting for its input" if slow.input > slow.lag / 2 else "by something other than its input: look there"
    return f"{name} holds up the others for {slow.lag:.0%} of the time, {why}"
