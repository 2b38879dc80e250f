"""Packing and verifying shards in front of a person: progress, speed, and what was left out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from maejax.data.errors import DataError
from maejax.data.pack import pack
from maejax.data.verify import Verified, verify
from maejax.training.errors import TrainingError

EVERY = 10.0  # seconds between lines where no bar can be drawn


def run(console: Console, src: str, dst: str, **options) -> dict:
    """Pack `src` into `dst` (see `maejax.data.pack`), telling how far it is; returns the index.

    Raises:
        DataError: the input is wrong.
        TrainingError: writing failed on the way.

    """
    try:
        with progress(console, "packing", "images") as tell:
            index = pack(src, dst, progress=tell, **options)
    except OSError as error:
        raise TrainingError(
            f"{dst}: {error.strerror}; make room, or mend it, and start the same command again"
        ) from None
    for problem in index.get("problems", ()):
        console.print(problem, highlight=False, markup=False, soft_wrap=True)
    for key, reason in index["skipped"].items():
        console.print(f"left out {key}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return index


def check(console: Console, dst: str, *, deep: bool, workers: int | None) -> Verified:
    """Verify the shards of `dst` (see `maejax.data.verify`), naming all that is wrong."""
    with progress(console, "verifying", "MB", 1e-6) as tell:
        found = verify(dst, deep=deep, workers=workers, progress=tell)
    for name, reason in found.wrong:
        console.print(f"{name}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return found


def destination(dst: str, deep: bool) -> str:
    """Return `dst`; raises DataError where it is missing, or where a flag of --verify is given without it."""
    if not dst:
        raise DataError("DST is missing: name the folder for the shards, as in `maejax pack SRC DST`")
    if deep:
        raise DataError("--deep belongs to --verify; packing decodes every image anyway")
    return dst


def verified_folder(src: str, dst: str) -> str:
    """Return the one folder that --verify takes; raises DataError where there are two."""
    if dst:
        raise DataError(f"--verify takes one folder, not {src} and {dst}; name that of the packed shards")
    return src


def show(console: Console, found: Verified) -> None:
    """Print in a line how a verification ended."""
    seen = f"{found.shards:,} shard{'s' * (found.shards != 1)}, {found.images:,} images, {found.bytes / 1e6:,.1f} MB"
    if found.wrong:
        console.print(f"[bold red]{len(found.wrong):,} wrong[/bold red] in {seen}", highlight=False)
    else:
        console.print(f"[green]all right:[/green] {seen}", highlight=False)


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
                highlight=False, soft_wrap=True,
            )  # fmt: skip

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
