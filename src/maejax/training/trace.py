"""Traces of a few steps, for TensorBoard's profiler or xprof."""

from pathlib import Path

import jax


class Trace:
    """Writes a trace of steps `start` .. `stop` into a folder, which is to be this process's own; a context manager."""

    def __init__(self, directory: Path, start: int, stop: int):
        self.directory, self.start, self.stop = directory, start, stop
        self._running = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def turns(self, step: int) -> bool:
        """Tell whether the trace begins or ends before the step after `step`."""
        return step in (self.start, self.stop)

    def turn(self, step: int) -> None:
        """Begin or end the trace; to be called where no step is under way."""
        if step == self.start:
            jax.profiler.start_trace(str(self.directory))
            self._running = True
        elif step == self.stop:
            self._end()

    def _end(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
