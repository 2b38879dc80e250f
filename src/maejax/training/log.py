"""Log of a run: metrics.jsonl, a live table on a terminal, plain lines elsewhere."""

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.errors import printable
from maejax.storage.atomic import write_atomically
from maejax.storage.redact import redact
from maejax.training.live_table import LiveTable
from maejax.training.trackers import Tracker, guarded

_log = logging.getLogger("maejax.training")

# `(step, metrics) -> whether to stop`, of the user's code; None is no.
Callback = Callable[[int, dict[str, float]], bool | None]


class RunLog:
    """Metrics and progress of a run from step `start` to `stop`; a context manager.

    Metrics are appended to `metrics.jsonl`, one object per line, without what an earlier process wrote beyond `start`.
    The `first` process alone writes and prints. `trackers` also get metrics and pictures, and are closed with the log.
    `callbacks` get the metrics too; what they raise is raised. `stop_asked` is True once one of them asked for a stop.
    """

    def __init__(
        self,
        directory: Path,
        start: int,
        stop: int,
        console: Console,
        *,
        first: bool = True,
        trackers: Sequence[Tracker] = (),
        callbacks: Sequence[Callback] = (),
    ):
        self.console, self.stop_asked = console, False
        self._callbacks = callbacks if first else ()
        self._lines, self._trackers = None, trackers if first else ()
        if first:
            path = directory / "metrics.jsonl"
            if path.exists():
                old = [json.dumps(line) + "\n" for line in read_lines(path) if line["step"] <= start]
                with write_atomically(path) as new:
                    new.write_text("".join(old))
            self._lines = Lines(path)
        self.stop, self._table = stop, LiveTable(console, start, stop) if first and console.is_terminal else None

    def __enter__(self):
        if self._table is not None:
            self._table.start()
        return self

    def __exit__(self, *_):
        if self._table is not None:
            self._table.stop()
        if self._lines is not None:
            self._lines.close()
        for tracker in self._trackers:
            guarded(tracker.close)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Append metrics of a step to metrics.jsonl, but for those that are not finite: JSON has no such numbers."""
        if self._table is not None:
            self._table.update(metrics)
        if self._lines is not None:
            finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
            self._lines.append(json.dumps({"step": step, **finite}) + "\n")
            for tracker in self._trackers:
                guarded(tracker.write, step, finite)
        for callback in self._callbacks:
            self.stop_asked |= bool(callback(step, dict(metrics)))

    def picture(self, step: int, path: Path) -> None:
        """Send a picture of reconstructions to the trackers."""
        for tracker in self._trackers:
            guarded(tracker.picture, step, path)

    def report(self, step: int, metrics: dict[str, float]) -> None:
        """Write the training metrics of a step and show them."""
        self.write(step, metrics)
        if self._table is None:
            rate, seconds = metrics.get("train/images_per_second"), metrics.get("train/eta_seconds")
            speed = f"  {rate:,.0f} images/s" if rate else ""
            eta = "" if seconds is None else f"  ETA {timedelta(seconds=round(seconds))}"
            now = f"loss {metrics['train/loss']:.4f}{speed}{eta}"
            self.console.print(f"step {step}/{self.stop}  {now}", highlight=False)

    def advance(self, step: int) -> None:
        """Show that a step was handed to the device."""
        if self._table is not None:
            self._table.advance(step)

    def message(self, text: str) -> None:
        """Print a line."""
        self.console.print(printable(redact(text)), highlight=False, markup=False, soft_wrap=True)


class Lines:
    """A text file that grows by whole lines or not at all; lines that do not fit on the disk are kept for later."""

    def __init__(self, path: Path):
        self._path, self._file, self._waiting = path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), b""

    def append(self, line: str) -> None:
        """Write a line and those that wait; if that fails, log it and keep them."""
        self._waiting += line.encode()
        size = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, self._waiting)
        except OSError as error:
            _log.error("%s cannot be written (%s); training goes on and will try again", self._path, error.strerror)
            return
        if written < len(self._waiting):
            os.ftruncate(self._file, size)
            _log.error("%s has no room on its disk; training goes on and will try again", self._path)
        else:
            self._waiting = b""

    def close(self) -> None:
        """Close the file; lines that have no room even now are lost, which is logged."""
        if self._waiting:
            self.append("")
        os.close(self._file)


def evaluated_at(path: Path, step: int, group: str = "val") -> bool:
    """Return whether a metrics file holds an evaluation of a step: metrics of a group."""
    names = (name for line in read_lines(path) if line["step"] == step for name in line)
    return any(name.startswith(f"{group}/") for name in names)


def read_metrics(path: Path, name: str) -> list[tuple[int, float]]:
    """Read one metric from a metrics file as (step, value) pairs; none if there is no file."""
    return [(line["step"], line[name]) for line in read_lines(path) if name in line]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Parse the lines of a metrics file, but for one that was cut off."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
