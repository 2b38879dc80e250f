"""How fast a run goes, how long it waits for input, how long it will take, and what memory it uses."""

import resource
import sys
import time

import jax


class Meter:
    """The rates between two readings; `batch_size` images make a step, and the run ends at step `stop`."""

    def __init__(self, batch_size: int, stop: int):
        self.batch_size, self.stop = batch_size, stop
        self._seconds = None  # of a step, in the long run
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin to count at a step."""
        self._clock, self._waited, self._since = time.monotonic(), 0.0, step

    def wait(self, seconds: float) -> None:
        """Add time in which the device was idle for want of a batch."""
        self._waited += seconds

    def read(self, step: int) -> dict[str, float]:
        """Return rates and memory since the last reading, and begin anew; nothing where no step was made.

        `train/input_wait` is the share of the time in which the device had to wait for input, on this host.
        """
        elapsed, steps, waited = time.monotonic() - self._clock, step - self._since, self._waited
        self.restart(step)
        if steps <= 0:
            return {}
        seconds = elapsed / steps
        self._seconds = seconds if self._seconds is None else 0.9 * self._seconds + 0.1 * seconds
        rate = self.batch_size / seconds
        return {
            "train/images_per_second": rate,
            "train/images_per_second_per_device": rate / jax.device_count(),
            "train/input_wait": waited / elapsed,
            "train/eta_seconds": self._seconds * (self.stop - step),
            **memory(),
        }


def memory() -> dict[str, float]:
    """Measure peak memory in bytes, of this process and, where the device tells, of its first device."""
    device = jax.local_devices()[0].memory_stats() or {}
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    peak = {"host/peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    return peak | ({"device/peak_memory": float(device["peak_bytes_in_use"])} if "peak_bytes_in_use" in device else {})
