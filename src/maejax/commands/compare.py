"""`maejax compare`: several runs on one page."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from maejax.commands.command import Command, check_writable, command_line
from maejax.console import literal, plain
from maejax.errors import InputError
from maejax.storage.redact import redact


@dataclass(frozen=True)
class CompareCommand(Command):
    """Compare runs on one page: scores, curves over each other, reconstructions, the settings that differ."""

    runs: list[str] = field(metadata={"positional": "RUN RUN ..."})
    """Run directories, or their addresses; runs that still train too."""
    out: str = "comparison.html"
    """File for the page."""

    def outputs(self) -> dict[str, bool]:
        """Name what is written."""
        return {"out": False}

    def run(self, console: Console) -> dict[str, Any]:
        """Write the page and return the scores of the runs and the flags that differ."""
        from maejax.pages.comparison import write_comparison
        from maejax.pages.history import History

        if len(self.runs) < 2:
            raise InputError("RUN RUN ...: name two run directories or more, as in `maejax compare runs/a runs/b`")
        check_writable("--out", self.out)
        names = Counter(Path(run).name for run in self.runs)
        found = {}
        for run in self.runs:
            folder = directory_of(run)
            history = History.read(folder)
            if not history.curves:
                raise InputError(f"{run} has nothing to compare yet: its metrics.jsonl has no line")
            found[redact(run) if names[Path(run).name] > 1 else Path(run).name] = folder, history
        path = Path(self.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_comparison(path, found)

    def show(self, console: Console, result: dict[str, Any]) -> None:
        """Print the scores as a table, and the path of the page."""
        from rich.table import Table

        from maejax.pages.comparison import cells_of

        titles, rows = cells_of(result["runs"])
        if len(titles) > len(rows) + 1:  # runs beside one another: a terminal is narrow
            table = Table("", *(literal(row[0][0]) for row in rows), box=None, pad_edge=False)
            columns = [(title, *(row[i] for row in rows)) for i, title in enumerate(titles) if i]
        else:
            table, columns = Table(*titles, box=None, pad_edge=False), [(row[0][0], *row[1:]) for row in rows]
        for name, *cells in columns:
            table.add_row(literal(name), *(f"[bold]{text}[/]" if best else text for text, best in cells))
        console.print(table)
        plain(console, f"page     {self.out}")

    def following(self, result: dict[str, Any]) -> str:
        """Return the evaluation of the first run."""
        run = self.runs[0]
        return f"{command_line('evaluate', run, '--out', f'{run}/evaluation')} (needs labelled images)"


def directory_of(run: str) -> Path:
    """Return the folder with the small files of a run; raises InputError if it is none."""
    from maejax.storage import mirror

    if "://" in run:
        return mirror.read_folder(run, 0)
    if not (Path(run) / "config.json").is_file():
        raise InputError(f"{run} has no config.json: name a run directory of maejax")
    return Path(run)
