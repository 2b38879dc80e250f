"""Rates of a run: images per second, waiting for input, time left, memory; and the process that holds up the others."""

import resource
import sys
import time
from contextlib import contextmanager
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from maejax.training.chips import chip_of
from maejax.training.mesh import by_process, put_rows, replicate

LAG = 0.25  # of the time, from which a process is called slow


class Meter:
    """Rates of a run up to step `stop`; a step has `batch_size` images, each of `flop` arithmetic, 0 if not known."""

    def __init__(self, batch_size: int, stop: int, flop: float = 0):
        self.batch_size, self.stop, self.flop = batch_size, stop, flop
        chip = chip_of(jax.devices()[0].device_kind)
        self._peak = None if chip is None else chip.peak
        self._seconds = None  # of a step, in the long run
        self.restart(0)

    def restart(self, step: int) -> None:
        """Count from a step on."""
        self._clock, self._waited, self._since = time.monotonic(), 0.0, step

    def wait(self, seconds: float) -> None:
        """Add time in which the device was idle because it had no batch."""
        self._waited += seconds

    def read(self, step: int) -> dict[str, float]:
        """Return rates and memory since the last reading, and count anew; return nothing if no step was made.

        `train/input_wait` is the part of the time in which the device waited for input, on this host. `train/mfu` is
        the model's arithmetic as a part of the devices' published bfloat16 peak, if the table of chips has them.
        """
        elapsed, steps, waited = time.monotonic() - self._clock, step - self._since, self._waited
        if steps <= 0:
            return {}
        self.restart(step)
        seconds = elapsed / steps
        self._seconds = seconds if self._seconds is None else 0.9 * self._seconds + 0.1 * seconds
        rate = self.batch_size / seconds
        mfu = {"train/mfu": self.flop * rate / jax.device_count() / self._peak} if self.flop and self._peak else {}
        return mfu | {
            "train/images_per_second": rate,
            "train/images_per_second_per_device": rate / jax.device_count(),
            "train/input_wait": waited / elapsed,
            "train/eta_seconds": self._seconds * (self.stop - step),
            **memory(),
        }


def memory() -> dict[str, float]:
    """Measure peak memory in bytes, of this process and of its first device, if that reports it."""
    device = jax.local_devices()[0].memory_stats() or {}
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    peaks = {"host/peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if "peak_bytes_in_use" in device:
        peaks["device/peak_memory"] = float(device["peak_bytes_in_use"])
    return peaks


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
