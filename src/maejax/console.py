"""Progress in front of a person: a bar on a terminal, else a line every ten seconds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

EVERY = 10.0  # seconds between lines where no bar can be drawn


@contextmanager
def progress(console: Console, what: str, unit: str, scale: float = 1.0) -> Iterator:
    """Show how far a job is: a bar on a terminal, else a line every ten seconds. Yields `tell(done, total)`."""
    begun = told = time.monotonic()
    first: int | None = None  # what was done before this call is not its speed

    def rate(done: int) -> float:
        return (done - (first or 0)) / max(time.monotonic() - begun, 1e-9)

    if console.is_terminal:
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(unit),
            TimeRemainingColumn(),
        ]
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=round(done * scale), total=round(total * scale))
        return

    def tell(done: int, total: int) -> None:
        nonlocal told, first
        first = done if first is None else first
        if (now := time.monotonic()) - told >= EVERY:
            told = now
            speed = max(rate(done), 1e-9)
            console.print(
                f"{what} {done * scale:,.0f} of {total * scale:,.0f} {unit}, {speed * scale:,.0f} {unit}/s, "
                f"{_duration((total - done) / speed)} left",
                highlight=False,
                soft_wrap=True,
            )

    yield tell


class _Rate(ProgressColumn):
    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} {self.unit}/s" if task.speed else f"- {self.unit}/s")


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
