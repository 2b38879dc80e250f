"""A line chart as SVG, without a plotting library."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path

import numpy as np

from maejax.storage.atomic import write_whole

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 120, 12, 44
_MOST_POINTS = 400


def draw_curve(lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """Draw named lines of (x, y) points with labelled axes; return one <svg> element.

    Points that are not finite are left out. Lines of more than 400 points are averaged over equal stretches. Each line
    ends in its name and last value. The page sets the colours: line k has the class "line-k".
    """
    drawn = {name: shortened for name, points in lines.items() if len(shortened := _shorten(points))}
    if not drawn:
        return '<p class="quiet">No losses were recorded.</p>'
    every = np.concatenate(list(drawn.values()))
    (x_low, x_high), y_ticks = _range(every[:, 0]), _ticks(*_range(every[:, 1]))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(y_label)} over {escape(x_label)}">']
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in [tick for tick in _ticks(x_low, x_high) if x_low <= tick <= x_high]:
        x, _ = place(tick, y_low)
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{_number(tick)}</text>')
    middle_x, middle_y = (_LEFT + _WIDTH - _RIGHT) / 2, (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{middle_x}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    turn = f'transform="rotate(-90 14 {middle_y})"'
    parts.append(f'<text x="14" y="{middle_y}" text-anchor="middle" {turn}>{escape(y_label)}</text>')

    ends = [place(*points[-1])[1] for points in drawn.values()]
    for above, below in pairwise(sorted(range(len(ends)), key=ends.__getitem__)):
        ends[below] = max(ends[below], ends[above] + 16)  # no label covers another
    for k, ((name, points), end) in enumerate(zip(drawn.items(), ends, strict=True)):
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in points)
        parts.append(f'<polyline class="line-{k}" points="{path}"/>')
        label = f"{escape(name)} {points[-1][1]:.3f}"
        parts.append(f'<text class="line-{k}" x="{_WIDTH - _RIGHT + 8}" y="{end + 4:.1f}">{label}</text>')
    return "\n".join([*parts, "</svg>"])


def write_curve(path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> None:
    """Write the chart of `draw_curve` as an SVG file with its own colours."""
    style = (
        "<style>svg{font:14px sans-serif;background:#fff}polyline{fill:none;stroke-width:2}.grid{stroke:#ddd}"
        "polyline.line-0{stroke:#1f6feb}polyline.line-1{stroke:#bf5700}"
        "text.line-0{fill:#1f6feb}text.line-1{fill:#bf5700}</style>"
    )
    start, _, rest = draw_curve(lines, x_label, y_label).partition(">")
    write_whole(path, f'{start} xmlns="http://www.w3.org/2000/svg">{style}{rest}')


def _shorten(points: Sequence[tuple[float, float]]) -> np.ndarray:
    table = np.asarray(points, float).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    if len(table) <= _MOST_POINTS:
        return table
    return np.stack([part.mean(axis=0) for part in np.array_split(table, _MOST_POINTS)])


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Return four to ten round numbers that enclose [low, high]."""
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough)
    return [round(k * step, 12) for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
