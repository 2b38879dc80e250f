"""Rates of a run: images per second, the part of the time spent waiting for input, time left, memory."""

import resource
import sys
import time

import jax

from maejax.training.chips import chip_of


class Meter:
    """Rates between two readings of a run that ends at step `stop`; a step has `batch_size` images.

    `flop` is the arithmetic of one image in a step; 0 if it is not known.
    """

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
