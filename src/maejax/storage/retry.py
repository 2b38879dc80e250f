"""When a fetch that failed is tried again, and when it is given up."""

import random
import threading
import time
from dataclasses import dataclass

from maejax.errors import FetchError, Stopped


@dataclass(frozen=True)
class RetryPolicy:
    """Limits in seconds: `connect` to a server, `stall` without a byte, `total` of consecutive failures.

    Retry n, counted from 0 in a row of failures, waits `backoff` * 2**n, at most a minute, with random jitter of -50 %.
    """

    connect: float = 20.0
    stall: float = 60.0
    total: float = 300.0
    backoff: float = 1.0


class Retry:
    """The consecutive failures of one fetch, and the pauses between its attempts."""

    def __init__(self, policy: RetryPolicy, stop: threading.Event):
        self._policy, self._stop = policy, stop
        self._failures, self._since = 0, time.monotonic()

    def progress(self) -> None:
        """Reset the count of failures, since bytes arrived. Raises Stopped if the fetch was stopped."""
        if self._stop.is_set():
            raise Stopped
        self._failures, self._since = 0, time.monotonic()

    def wait(self, reason: str, seconds: float | None = None) -> None:
        """Pause before the next attempt, for `seconds` if given; raises FetchError beyond the policy's `total`."""
        if seconds is None:
            seconds = min(60.0, self._policy.backoff * 2**self._failures) * random.uniform(0.5, 1)
        spent = time.monotonic() - self._since
        self._failures += 1
        if spent + seconds > self._policy.total:
            raise FetchError(f"{reason} (gave up after {self._failures} tries in {spent:.0f} s)")
        if self._stop.wait(seconds):
            raise Stopped
