"""Which of several processes holds up the others."""

import time
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.training.mesh import by_process, put_rows, replicate

LAG = 0.25  # share of the time from which a process is called slow


class Slow(NamedTuple):
    """A process that holds up the others: for which share of the time, and how much of that it waited for input."""

    process: int
    lag: float
    input: float


class Pace:
    """How every process spends its time, told to all at every log line.

    All processes make the same step at the same time, so the step's time tells nothing of who is slow. But one that is
    slow by itself (its input, its disk, another program) never waits for its device, while the others do, for it. A
    device that is slow does not show here.

    What is told by one log line is heard at the next, so that no device waits for it.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._told = mesh, None
        self.restart()

    def restart(self) -> None:
        """Begin to count."""
        self._begun, self._spent = time.monotonic(), {"device": 0.0, "input": 0.0}

    @contextmanager
    def waiting(self, what: str):
        """Count the time in a `with` as that of waiting for the `device`, or for the `input`."""
        begun = time.monotonic()
        yield
        self._spent[what] += time.monotonic() - begun

    def exchange(self) -> Slow | None:
        """Tell the others, and give who was slow before the last call; all processes call this together."""
        if jax.process_count() == 1:
            return None
        elapsed = max(1e-9, time.monotonic() - self._begun)
        shares = np.array([[self._spent["device"] / elapsed, self._spent["input"] / elapsed]], np.float32)
        heard = None if self._told is None else by_process(jax.device_get(self._told.addressable_data(0)), self._mesh)
        self._told = replicate(put_rows(np.tile(shares, (len(self._mesh.local_devices), 1)), self._mesh), self._mesh)
        self.restart()
        return None if heard is None else find_slow(heard)


def find_slow(shares: np.ndarray) -> Slow | None:
    """Find who holds up the others by the shares of time [processes, 2] in which each waited for device and input."""
    own = 1 - shares[:, 0]
    slowest = int(own.argmax())
    lag = float(own[slowest] - np.median(np.delete(own, slowest)))
    return Slow(slowest, lag, float(shares[slowest, 1])) if lag > LAG else None


def describe(slow: Slow, name: str) -> str:
    """Say who is slow, and by what."""
    why = "by waiting for its input" if slow.input > slow.lag / 2 else "by something other than its input: look there"
    return f"{name} holds up the others for {slow.lag:.0%} of the time, {why}"
