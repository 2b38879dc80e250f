"""Runs compared on one page: scores, curves over each other, reconstructions side by side, settings that differ."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from maejax.evaluation.protocols import MEASURES as PROTOCOL_MEASURES
from maejax.evaluation.scores import MEASURES
from maejax.pages.chart import draw_chart, number_rows
from maejax.pages.frames import draw_slider, read_frames
from maejax.pages.history import History
from maejax.pages.page import details, section, table, write_page
from maejax.pages.run_charts import CHARTS, loss_unit
from maejax.pages.run_page import duration, seen_of, shown_value

_OWN = ("name", "output_dir", "project", "hostname")  # flags that say nothing about a run
TITLES = {**MEASURES, **PROTOCOL_MEASURES}


class Column(NamedTuple):
    """A score of runs: its title, the format of a value, and 1 if more is better, -1 if less is, 0 if neither."""

    title: str
    form: str
    better: int = 0


COLUMNS = {
    "step": Column("steps", "{:,.0f}"),
    "val/loss": Column("validation loss", "{:.4f}", -1),
    "val/acc1": Column("top 1, %", "{:.1f}", 1),
    "watch/knn": Column("nearest neighbours, %", "{:.1f}", 1),
    "watch/rank": Column("effective rank", "{:.1f}"),
    "train/loss": Column("training loss", "{:.4f}"),
    **{f"evaluate/{name}": Column(f"{title}, %", "{:.1f}", 1) for name, title in TITLES.items()},
    "images_per_second": Column("images/s", "{:,.0f}"),
    "seconds": Column("training time", ""),
    "device_hours": Column("device-hours", "{:,.2f}"),
}


def scores_of(directory: Path, history: History) -> dict[str, float]:
    """Return the last scores of a run by the names of `COLUMNS`, those of `maejax evaluate` too if they lie in it."""
    found: dict[str, float] = {"step": history.step}
    found |= {name: history.last(name)[1] for name in COLUMNS if name in history.curves}
    for path in sorted([*directory.glob("report.json"), *directory.glob("*/report.json")]):
        given = json.loads(path.read_text()).get("scores", {}).get("pretrained", {})
        found |= {f"evaluate/{name}": value for name, value in given.items() if name in TITLES}
    if history.seconds:
        found |= {"images_per_second": seen_of(history) / history.seconds, "seconds": history.seconds}
        found["device_hours"] = history.device_seconds / 3600
    return {name: found[name] for name in COLUMNS if name in found}


def cells_of(scores: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[tuple[str, bool]]]]:
    """Lay scores of runs out as titles and rows, a row for each run, of text and whether it is the best."""
    names = [name for name in COLUMNS if any(name in row for row in scores.values())]
    rows = []
    for run, row in scores.items():
        cells = [(run, False)]
        for name in names:
            _, form, better = COLUMNS[name]
            known = [other[name] for other in scores.values() if name in other]
            text = "" if name not in row else form.format(row[name]) if form else duration(row[name])
            best = better and name in row and len(known) > 1 and row[name] == better * max(better * v for v in known)
            cells.append((text, bool(best)))
        rows.append(cells)
    return ["run", *(COLUMNS[name].title for name in names)], rows


def differences(runs: Mapping[str, History]) -> dict[str, list[Any]]:
    """Return the flags that are not the same in all runs, each with its value in every run."""
    flags = [history.config["flags"] for history in runs.values()]
    names = dict.fromkeys(name for given in flags for name in given if name not in _OWN)
    values = {name: [given.get(name) for given in flags] for name in names}
    return {name: found for name, found in values.items() if any(value != found[0] for value in found)}


def write_comparison(path: Path, runs: Mapping[str, tuple[Path, History]]) -> dict[str, Any]:
    """Write a page that compares runs by name; return their scores and the flags that differ, as JSON can hold them."""
    histories = {name: history for name, (_, history) in runs.items()}
    scores = {name: scores_of(directory, history) for name, (directory, history) in runs.items()}
    changed = differences(histories)
    titles, rows = cells_of(scores)
    lines = []
    for k, ((name, _), *cells) in enumerate(rows):
        inside = "".join(f"<td{' class=best' * best}>{escape(text)}</td>" for text, best in cells)
        lines.append(f'<tr><th><span class="key line-{k % 10}"><i></i></span>{escape(name)}</th>{inside}</tr>')
    settings = "".join(
        f"<tr><th>--{name.replace('_', '-')}</th>"
        + "".join(f"<td>{escape(shown_value(value))}</td>" for value in values)
        + "</tr>"
        for name, values in changed.items()
    )
    frames = {name: (read_frames(directory), history.step) for name, (directory, history) in runs.items()}
    charts, numbers = _charts(histories)
    legend = '<p class="quiet">At the last step; the best of a column is bold.</p>'
    parts = [
        section("Scores", table(titles, lines) + legend),
        section("Curves", charts and f'<div class="charts">{charts}</div>'),
        section("Reconstructions over time", draw_slider(frames)),
        section("Settings that differ", settings and f'<div class="words">{table(("flag", *runs), [settings])}</div>'),
        section("Numbers", numbers),
    ]
    write_page(path, f"{len(runs)} runs compared", parts)
    return {"runs": scores, "differences": {name: dict(zip(runs, v, strict=True)) for name, v in changed.items()}}


def _charts(runs: Mapping[str, History]) -> tuple[str, str]:
    """Return a chart of every metric with a line for each run, and their numbers as tables."""
    charts, numbers = [], []
    for panel in CHARTS:
        for metric, name in panel.metrics.items():
            lines = {
                run: [(step, panel.factor * value) for step, value in history.points(metric)]
                for run, history in runs.items()
                if metric in history.curves
            }
            title = f"{panel.title}, {name}" if len(panel.metrics) > 1 else panel.title
            units = {panel.unit or loss_unit(history.config["flags"]) for history in runs.values()}
            charts.append(draw_chart(title, lines, "step", " or ".join(sorted(units)), panel.axis))
            rows = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in number_rows(lines)]
            numbers.append(details(title, table(("step", *lines), rows)) if rows else "")
    return "".join(charts), "".join(numbers)
