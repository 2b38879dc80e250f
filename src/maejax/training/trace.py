"""Profiler traces of a few steps, for TensorBoard or xprof."""

from pathlib import Path

import jax


class Trace:
    """A trace of steps `ends[0]` .. `ends[1]`, written to a folder of this process alone; a context manager."""

    def __init__(self, directory: Path, start: int, stop: int):
        self.directory, self.ends, self._running = directory, (start, stop), False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._running:
            self.start_or_stop(self.ends[1])

    def start_or_stop(self, step: int) -> None:
        """Start or stop the trace at one of its ends; to be called when no step is in flight."""
        if step == self.ends[0]:
            jax.profiler.start_trace(str(self.directory))
        elif self._running:
            jax.profiler.stop_trace()
        self._running = step == self.ends[0]
