"""The view of a run on a terminal: a bar, and below it the newest numbers."""

from datetime import timedelta

from rich.console import Console, Group
from rich.filesize import decimal
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

UPDATES = 2  # a second
# Title, smallest width (so that nothing moves), metrics of which the first that is known is shown, and its format.
COLUMNS = (
    ("loss", 7, ("train/loss",), "{:.4f}".format),
    ("val loss", 8, ("val/loss",), "{:.4f}".format),
    ("rate", 8, ("train/learning_rate",), "{:.2e}".format),
    ("images/s", 8, ("train/images_per_second",), "{:,.0f}".format),
    ("wait", 4, ("train/input_wait",), "{:.0%}".format),
    ("memory", 8, ("device/peak_memory", "host/peak_memory"), lambda size: decimal(round(size))),
)


class LiveTable:
    """Progress and metrics of a run from step `start` to `stop`, drawn again at the bottom of a terminal."""

    def __init__(self, console: Console, start: int, stop: int):
        done = TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn()
        self._bar = Progress(*done, TimeElapsedColumn(), console=console, speed_estimate_period=60)
        self._task = self._bar.add_task("compiling", total=stop, completed=start)
        self._begun, self._metrics = False, dict[str, float]()
        self._live = Live(console=console, get_renderable=self.draw, refresh_per_second=UPDATES)

    def start(self) -> None:
        """Begin to draw."""
        self._live.start()

    def stop(self) -> None:
        """Draw once more, and leave the table where it is."""
        self._live.stop()

    def update(self, metrics: dict[str, float]) -> None:
        """Take newer metrics."""
        self._metrics = self._metrics | metrics

    def advance(self, step: int) -> None:
        """Move the bar."""
        if not self._begun:  # the first step compiled: no measure of speed
            self._bar.reset(self._task, completed=step, description="training")
            self._begun = True
        self._bar.update(self._task, completed=step)

    def draw(self) -> Group:
        """Build the bar and the table."""
        table, cells = Table(box=None, pad_edge=False, header_style="dim"), []
        for title, width, names, text in COLUMNS:
            table.add_column(title, min_width=width, no_wrap=True)
            cells.append(next((text(self._metrics[name]) for name in names if name in self._metrics), "-"))
        seconds = self._bar.tasks[0].time_remaining
        table.add_column("ETA", min_width=8, no_wrap=True)
        table.add_row(*cells, "-" if seconds is None else str(timedelta(seconds=round(seconds))))
        return Group(self._bar, table)
