"""How long a fetch goes on trying before it gives up."""

import random
import threading
import time
from dataclasses import dataclass

from maejax.errors import FetchError, Stopped


@dataclass(frozen=True)
class Patience:
    """Times in seconds: `connect` to a server, `stall` without a byte, `total` of failures in a row.

    The n-th retry in a row waits `backoff` * 2**n, at most a minute, less up to half of it at random.
    """

    connect: float = 20.0
    stall: float = 60.0
    total: float = 300.0
    backoff: float = 1.0


class Retry:
    """Counts the failures in a row of one fetch and waits between them."""

    def __init__(self, patience: Patience, stop: threading.Event):
        self._patience = patience
        self._stop = stop
        self._failures = 0
        self._since = time.monotonic()

    def progress(self) -> None:
        """Note that bytes came: the row of failures ends. Raises Stopped."""
        if self._stop.is_set():
            raise Stopped
        self._failures = 0
        self._since = time.monotonic()

    def wait(self, reason: str, seconds: float | None = None) -> None:
        """Wait before the next try, `seconds` where the server asked for them.

        Raises FetchError with the reason where patience is at its end, and Stopped.
        """
        if seconds is None:
            seconds = min(60.0, self._patience.backoff * 2**self._failures) * random.uniform(0.5, 1)
        spent = time.monotonic() - self._since
        self._failures += 1
        if spent + seconds > self._patience.total:
            raise FetchError(f"{reason} (gave up after {self._failures} tries in {spent:.0f} s)")
        if self._stop.wait(seconds):
            raise Stopped
