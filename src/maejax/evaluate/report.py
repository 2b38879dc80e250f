"""The report: one HTML page that holds everything and needs nothing, to be sent to a colleague as it is."""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from maejax.evaluate.curve import draw_curve
from maejax.evaluate.scores import FEATURES, MEASURES, Scores, cell, explain


def write_report(
    path: str | Path,
    *,
    title: str,
    scores: Scores,
    seconds: Mapping[str, float],
    losses: Mapping[str, Sequence[tuple[float, float]]],
    picture_paths: Mapping[str, str | Path],
    config: Mapping[str, Any],
    command: str,
    notes: Iterable[str] = (),
    licence: str = "",
    x_label: str = "epoch",
    measures: Mapping[str, str] = MEASURES,
    sentence: str | None = None,
) -> None:
    """Write the report to `path`, replacing what is there.

    `scores` are accuracies in percent as `explain` takes them, `seconds` the time of each stage in the order to show.
    `losses` names the lines of the curve, such as "train" and "validation", each a list of (`x_label`, loss).
    `picture_paths` gives the PNG file for each caption, `config` is anything json can write, `command` the line that
    reproduces the run, `notes` are sentences below the scores, `licence` is the line about the data. `measures` names
    the columns of the scores; `sentence` opens the page in place of what `explain` says. Without losses no curve.

    The page has inline styles and SVG, pictures as base64, no script and no outside resource.

    Raises FileNotFoundError for a missing picture.
    """
    pictures = "\n".join(_figure(caption, Path(file)) for caption, file in picture_paths.items())
    sections = [
        _section("Pictures", pictures) if pictures else "",
        _section("Loss", draw_curve(losses, x_label, "loss")) if losses else "",
        _section("Time", _seconds_table(seconds)),
        _section("Do it again", f'<pre class="wrap">{escape(command)}</pre>\n{_configuration(config)}'),
    ]
    template = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(title),
        sentence=escape(explain(scores) if sentence is None else sentence),
        scores=_score_table(scores, measures) + "".join(f'\n<p class="quiet">{escape(note)}</p>' for note in notes),
        sections="\n".join(filter(None, sections)),
        footer="\n".join(f"<p>{escape(line)}</p>" for line in (licence, "Written by maejax.") if line),
    )
    Path(path).write_text(page, encoding="utf-8")


def _section(heading: str, body: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{body}\n</section>"


def _score_table(scores: Scores, measures: Mapping[str, str]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *measures.values()))
    rows = []
    for kind, row in scores.items():
        cells = "".join(f"<td>{cell(row, measure)}</td>" for measure in measures)
        ours = ' class="ours"' if kind == "pretrained" else ""
        rows.append(f"<tr{ours}><th>{escape(FEATURES.get(kind, kind))}</th>{cells}</tr>")
    legend = '<p class="quiet">Test accuracy in percent on frozen features; ± is the standard deviation over draws.</p>'
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>\n{legend}"


def _seconds_table(seconds: Mapping[str, float]) -> str:
    stages = {**seconds, "all": sum(seconds.values())}
    rows = [f"<tr><th>{escape(stage)}</th><td>{value:,.1f} s</td></tr>" for stage, value in stages.items()]
    return f'<table class="times">\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>'


def _configuration(config: Mapping[str, Any]) -> str:
    text = escape(json.dumps(config, indent=2, default=str))
    return f"<details>\n<summary>Configuration</summary>\n<pre>{text}</pre>\n</details>"


def _figure(caption: str, file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    image = f'<img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
    return f"<figure>\n{image}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"
