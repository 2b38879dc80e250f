import math
from xml.etree import ElementTree

import pytest

from maejax.evaluate.curve import _ticks, draw_curve


def lines_of(svg):
    root = ElementTree.fromstring(svg)
    polylines = [
        [tuple(map(float, point.split(","))) for point in e.get("points", "").split()] for e in root.iter("polyline")
    ]
    return polylines, [e.text for e in root.iter("text")]


def test_points_are_drawn_where_they_belong():
    (line,), texts = lines_of(draw_curve({"train": [(0, 1.0), (50, 0.5), (100, 0.0)]}, "epoch", "loss"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y1 - y0 == pytest.approx(y2 - y1)
    assert y2 > y0  # downwards: SVG counts from the top
    assert {"epoch", "loss", "train 0.000", "0", "100", "1"} <= set(texts)


def test_long_lines_are_shortened_and_gaps_left_out():
    long = [(k, 1 / (k + 1)) for k in range(10_000)]
    (line,), _ = lines_of(draw_curve({"train": long, "val": [(1, math.nan)]}, "step", "loss"))
    assert len(line) == 400


def test_equal_ends_do_not_cover_each_other():
    svg = draw_curve({"train": [(0, 1), (9, 0.5)], "val": [(0, 1), (9, 0.5)]}, "step", "loss")
    ends = [float(e.get("y", 0)) for e in ElementTree.fromstring(svg).iter("text") if (e.get("class") or "")]
    assert abs(ends[0] - ends[1]) >= 14


def test_one_point_and_none():
    assert "polyline" in draw_curve({"train": [(3, 0.7)]}, "step", "loss")
    assert "No losses" in draw_curve({"train": []}, "step", "loss")


@pytest.mark.parametrize(("low", "high"), [(0.31, 0.98), (1, 125), (0, 1e5), (-3e-4, 2e-4)])
def test_ticks_are_few_round_and_enclosing(low, high):
    ticks = _ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 4 <= len(ticks) <= 10
