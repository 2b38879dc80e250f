"""Output for people: plain lines, and the progress of a job."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from maejax.errors import printable

FIRST, EVERY = 10.0, 60.0  # seconds to the first line, and between two, where no bar can be drawn


class Terminal(Console):
    """The console of a command's progress: a terminal only where lines can be drawn again, else as a file.

    The cursor is never hidden: a process that a signal ends could not show it again.
    """

    def __init__(self, *, stderr: bool = False):
        seen = Console(stderr=stderr)
        steady = seen.no_color or seen.is_dumb_terminal or not seen.file.isatty()
        super().__init__(stderr=stderr, force_terminal=False if steady else None)

    def show_cursor(self, show: bool = True) -> bool:
        """Leave the cursor as it is."""
        return False


def literal(text: str) -> str:
    """Escape what a table would read as markup, and control characters."""
    return escape(printable(text))


class PrintableFormatter(logging.Formatter):
    """Formats the messages of a log without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        return printable(super().format(record))


def plain(console: Console, text: str, style: str | None = None) -> None:
    """Print text as it is: not wrapped or read as markup, coloured by `style` alone, its control characters escaped."""
    console.print(printable(text), style=style, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def reserve_stdout(reserved: bool) -> Iterator[None]:
    """If `reserved`, send what libraries print to stdout to the error stream: Gloo prints by itself."""
    if not reserved:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def progress(console: Console, what: str, unit: str, scale: float = 1.0) -> Iterator[Callable[[int, int | None], None]]:
    """Show the progress of a job: a bar on a terminal, else a line every minute. Yields `report(done, total)`.

    `total` is None where it is not known.
    """
    begun = time.monotonic()
    due = begun + FIRST
    first: int | None = None  # what was done before this call does not count for the speed

    if console.is_terminal:
        done = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
        with Progress(*done, _Rate(unit), TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(
                task, completed=round(done * scale), total=None if total is None else round(total * scale)
            )
        return

    def report(done: int, total: int | None) -> None:
        """Print a line if it is time."""
        nonlocal due, first
        first = done if first is None else first
        if (now := time.monotonic()) >= due:
            due = now + EVERY
            speed = max((done - first) / max(now - begun, 1e-9), 1e-9)
            of = "" if total is None else f" of {total * scale:,.0f}"
            left = "" if total is None else f", {timedelta(seconds=round((total - done) / speed))} left"
            plain(console, f"{what} {done * scale:,.0f}{of} {unit}, {speed * scale:,.0f} {unit}/s{left}")

    yield report


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else f"- {self.unit}/s")
