"""The report of an evaluation: one HTML page that can be sent to a colleague as it is."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from maejax.evaluation.scores import FEATURES, MEASURES, Scores, explain, grid
from maejax.pages.page import command_line, details, section, table, write_page


@dataclass(frozen=True, kw_only=True)
class Report:
    """The content of a report. Scores are accuracies in percent; `measures` names their columns.

    `seconds` holds the time of each stage in the order to show. `pictures` maps captions to PNG files. `command`
    reproduces the run with `config`, which JSON can hold. `notes` stand below the scores, `licence` at the foot.
    `sentence` replaces the one of `explain`. `more` are parts of HTML below the pictures.
    """

    title: str
    scores: Scores
    seconds: Mapping[str, float]
    config: Mapping[str, Any]
    command: str
    pictures: Mapping[str, str | Path] = field(default_factory=dict)
    notes: Sequence[str] = ()
    licence: str = ""
    measures: Mapping[str, str] = field(default_factory=lambda: MEASURES)
    sentence: str | None = None
    more: Sequence[str] = ()


def write_report(path: Path, report: Report) -> None:
    """Write a report to `path`, with its pictures inside. Raises FileNotFoundError for a missing picture."""
    sentence = explain(report.scores) if report.sentence is None else report.sentence
    head, cells = grid(report.scores, report.measures)
    rows = []
    for name, *row in cells:
        best = [name == FEATURES["pretrained"] or title == FEATURES["pretrained"] for title in head]
        tags = ['td class="best"' if bold else "td" for bold in best[1:]]
        inside = "".join(f"<{tag}>{text}</td>" for tag, text in zip(tags, row, strict=True))
        rows.append(f"<tr><th>{escape(name)}</th>{inside}</tr>")
    legend = "Test accuracy in percent on frozen features; ± is the standard deviation over draws."
    pictures = "\n".join(_figure(caption, file) for caption, file in report.pictures.items())
    stages = {**report.seconds, "all": sum(report.seconds.values())}
    times = "\n".join(f"<tr><th>{escape(stage)}</th><td>{value:,.1f} s</td></tr>" for stage, value in stages.items())
    config = details("Configuration", f"<pre>{escape(json.dumps(report.config, indent=2, default=str))}</pre>")
    parts = [
        f'<p class="lead">{escape(sentence)}</p>',
        table(head, rows),
        *(f'<p class="quiet">{escape(note)}</p>' for note in (legend, *report.notes)),
        section("Attention", pictures),
        *report.more,
        section("Time", f'<table class="times">\n<tbody>\n{times}\n</tbody>\n</table>'),
        section("Do it again", f"{command_line(report.command)}\n{config}"),
    ]
    write_page(path, report.title, parts, [report.licence])


def _figure(caption: str, file: str | Path) -> str:
    data = base64.b64encode(Path(file).read_bytes()).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
    return f"<figure>\n{image}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"
