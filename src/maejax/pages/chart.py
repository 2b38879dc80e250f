"""A line chart as SVG inside its caption, and a table of its numbers.

Our own, and no library: SVG shows without a script, prints, follows the page's colours in light and dark, and takes
5 kB a line. A library that can be embedded whole adds 50 kB (uPlot) to 4 MB (Plotly) to every page and draws on a
canvas.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Literal

import numpy as np

Points = Sequence[tuple[float, float]]
Axis = Literal["fit", "zero", "logarithmic"]
_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 30, 40
_COLOURS = 10  # of the page
_LOGARITHMIC = 20  # times the smallest value, from which positive values are drawn so where that is asked for
_ROWS = 24  # of a table
_DIGIT = 8  # width at most


def draw_chart(title: str, lines: Mapping[str, Points], x_label: str, y_label: str, axis: Axis = "fit") -> str:
    """Draw named lines of (x, y) points with labelled axes; return one <figure>, "" without a finite point.

    The caption names each line with its last value, which the page replaces by those under the pointer. `axis` says
    where the values stand: an axis may begin at zero, or be logarithmic for positive values of a wide range.
    """
    drawn = {name: table for name, points in lines.items() if len(table := _finite(points))}
    if not drawn:
        return ""
    every = np.concatenate(list(drawn.values()))
    low, high = float(every[:, 1].min()), float(every[:, 1].max())
    logarithmic = axis == "logarithmic" and low > 0 and high > _LOGARITHMIC * low
    if axis == "zero":
        every = np.concatenate([every, every[:1] * [1, 0]])
    x_low, x_high = _range(every[:, 0])
    if logarithmic:
        y_low, y_high = math.log10(low), math.log10(high)
        y_ticks = {math.log10(tick): tick for tick in _powers(low, high)}
    else:
        y_ticks = {tick: tick for tick in _ticks(*_range(every[:, 1]), 5)}
        y_low, y_high = min(y_ticks), max(y_ticks)

    def across(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    scale = (_LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM, x_low, x_high, y_low, y_high, int(logarithmic))
    spoken = "; ".join(f"{name} {_number(p[0, 1])} to {_number(p[-1, 1])}".strip() for name, p in drawn.items())
    label = escape(f"{title}: {y_label} over {x_label}. {spoken}")
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}" data-x="{escape(x_label)}" '
        f'data-scale="{" ".join(f"{value:.8g}" for value in scale)}">',
        f'<text x="0" y="14">{escape(y_label)}</text>',
    ]
    for at, tick in y_ticks.items():
        y = down(at)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    for tick in [tick for tick in _ticks(x_low, x_high, 4) if x_low <= tick <= x_high]:
        text, x = _number(tick), across(tick)
        x, anchor = (_WIDTH, "end") if x + _DIGIT / 2 * len(text) > _WIDTH else (x, "middle")  # else it would be cut
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 20}" text-anchor="{anchor}">{text}</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    for k, points in enumerate(drawn.values()):
        places = [(across(x), down(math.log10(y) if logarithmic else y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline class="line-{k % _COLOURS}" points="{path}"/>')
        if len(places) <= 12:
            parts += [f'<circle class="line-{k % _COLOURS}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in places]
    keys = "".join(
        f'<span class="key line-{k % _COLOURS}"><i></i>{escape(name or "now")} <data>{_number(p[-1, 1])}</data></span>'
        for k, (name, p) in enumerate(drawn.items())
    )
    caption = f'<figcaption><b>{escape(title)}</b>{keys}<span class="at"></span></figcaption>'
    return "\n".join([f'<figure class="chart">{caption}', *parts, "</svg></figure>"])


def number_rows(columns: Mapping[str, Points]) -> list[list[str]]:
    """Return rows of a step and the value of each column at it, or the last one before; at most 24 rows."""
    tables = [_finite(points) for points in columns.values()]
    # The steps of the rarest evaluations, where all columns have a value.
    steps = min((table[:, 0] for table in tables if len(table) > 1), key=len, default=np.zeros(0))
    rows = []
    for step in steps[np.unique(np.linspace(0, len(steps) - 1, min(_ROWS, len(steps))).astype(int))]:
        known = [table[table[:, 0] <= step + 0.5] for table in tables]
        rows.append([f"{step:,.0f}", *(_number(float(table[-1, 1])) if len(table) else "" for table in known)])
    return rows


def _finite(points: Points) -> np.ndarray:
    table = np.asarray(points, float).reshape(-1, 2)
    return table[np.isfinite(table).all(axis=1)]


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    half = abs(low) / 2 or 0.5
    return (low, high) if high > low else (low - half, high + half)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers that enclose [low, high], in steps of no less than `most` parts of it."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    return [float(f"{k * step:.12g}") for k in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times a power of ten within [low, high], or the powers alone if those suffice."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [float(f"{m}e{k}") for k in exponents for m in (1, 2, 5) if low <= float(f"{m}e{k}") <= high]
    return found if len(found) <= 6 else [float(f"1e{k}") for k in exponents if low <= float(f"1e{k}") <= high]


def _number(value: float) -> str:
    if 0 < abs(value) < 0.01:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
