"""How fast a run goes, and how long it waits for input."""

import time


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
