"""The curves of a run as charts, and as a table."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maejax.pages.chart import Axis, draw_chart, number_rows
from maejax.pages.history import History
from maejax.pages.page import details, table


class Panel(NamedTuple):
    """A chart of a run: its title, the unit of y, its lines by metric, the factor of their values, and the axis.

    Without a unit it is that of the run's loss.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    factor: float = 1
    axis: Axis = "fit"


CHARTS = (
    Panel("Loss", "", {"val/loss": "validation", "train/loss": "training"}),
    Panel("Accuracy on validation images", "% of images", {"val/acc1": "top 1", "val/acc5": "top 5"}),
    Panel("Nearest neighbours that agree", "% of watched images", {"watch/knn": "vote of 20"}),
    Panel("Effective rank of the features", "dimensions", {"watch/rank": "watched images"}),
    Panel("Learning rate", "rate", {"train/learning_rate": ""}, axis="zero"),
    Panel("Norm of the gradient", "norm", {"train/grad_norm": ""}, axis="logarithmic"),
    Panel("Speed", "images/s", {"train/images_per_second": "training"}, axis="zero"),
    Panel("Waiting for images", "% of the time", {"train/input_wait": "devices idle"}, 100, axis="zero"),
)


def charts(history: History) -> str:
    """Return the charts of a run, "" without a value."""
    found = []
    for title, unit, metrics, factor, axis in CHARTS:
        points = {name: [(step, factor * v) for step, v in history.points(m)] for m, name in metrics.items()}
        found.append(draw_chart(title, points, "step", unit or loss_unit(history.config["flags"]), axis))
    return f'<div class="charts">{"".join(found)}</div>' if any(found) else ""


def loss_unit(given: Mapping[str, Any]) -> str:
    """Return what the loss of a run measures."""
    if given.get("mode", "pretrain") != "pretrain":
        return "binary cross-entropy" if given.get("criterion") == "bce" else "cross-entropy"
    pixels = "normalised pixels" if given.get("norm_pix_loss") else "pixels"
    predicted = {"pixels": pixels, "pca": "components"}.get(given.get("target", "pixels"), "features")
    return f"mean squared error of {predicted}"


def draw_sweep(path: Path) -> str:
    """Return a chart of the rates that a probe on cached features tried, "" if it did not."""
    rates = json.loads(path.read_text())["rates"] if path.exists() else []
    rates.sort(key=lambda row: row["learning_rate"])
    names = {"val/acc1": "top 1", "val/acc5": "top 5"}
    lines = {title: [(math.log10(r["learning_rate"]), r[name]) for r in rates] for name, title in names.items()}
    chart = draw_chart("Accuracy by learning rate", lines, "log10 of the base learning rate", "% of validation images")
    return chart and f'<div class="charts">{chart}</div>'


def numbers(history: History) -> str:
    """Return the values of all charts as a table that is folded away."""
    columns = {}
    for title, unit, metrics, factor, _ in CHARTS:
        for metric, name in metrics.items():
            if points := history.points(metric):
                columns[", ".join(filter(None, (title.lower(), name, unit)))] = [(s, factor * v) for s, v in points]
    rows = ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in number_rows(columns)]
    return details("All curves as a table", table(("step", *columns), rows)) if rows else ""
