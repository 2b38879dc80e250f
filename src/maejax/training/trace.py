"""Profiler traces of a few steps, for TensorBoard or xprof."""

from pathlib import Path

import jax


class Trace:
    """A trace of steps `start` .. `stop`, written to a folder of this process alone; a context manager."""

    def __init__(self, directory: Path, start: int, stop: int):
        self.directory, self.start, self.stop = directory, start, stop
        self._running = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._running:
            self.start_or_stop(self.stop)

    def changes_at(self, step: int) -> bool:
        """Return whether the trace starts or stops after step `step`."""
        return step in (self.start, self.stop)

    def start_or_stop(self, step: int) -> None:
        """Start or stop the trace; to be called when no step is in flight."""
        if step == self.start:
            jax.profiler.start_trace(str(self.directory))
        elif self._running:
            jax.profiler.stop_trace()
        self._running = step == self.start
