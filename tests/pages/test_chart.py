import math
from xml.etree import ElementTree

import pytest

from maejax.pages.chart import _powers, _ticks, draw_chart, number_rows


def lines_of(figure):
    root = ElementTree.fromstring(figure)
    polylines = [
        [tuple(map(float, point.split(","))) for point in e.get("points", "").split()] for e in root.iter("polyline")
    ]
    return polylines, [e.text for e in root.iter("text")], "".join(root.itertext())


def test_points_are_drawn_where_they_belong():
    (line,), texts, every = lines_of(draw_chart("Loss", {"train": [(0, 1), (50, 0.5), (100, 0)]}, "epoch", "squares"))
    (x0, y0), (x1, y1), (x2, y2) = line
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y1 - y0 == pytest.approx(y2 - y1)
    assert y2 > y0  # downwards: SVG counts from the top
    assert {"epoch", "squares", "0", "100", "1"} <= set(texts)
    assert "Losstrain 0" in every


def test_axes_begin_where_they_should():
    points = [(0, 1.0), (1, 10.0), (2, 100.0)]
    (((_, fit), *_),) = lines_of(draw_chart("", {"a": points[1:]}, "", ""))[0]
    (((_, zero), *_),) = lines_of(draw_chart("", {"a": points[1:]}, "", "", "zero"))[0]
    assert fit >= zero
    (line,) = lines_of(draw_chart("", {"a": points}, "", "", "logarithmic"))[0]
    assert line[1][1] - line[0][1] == pytest.approx(line[2][1] - line[1][1])


def test_no_label_is_cut_at_the_edge():
    root = ElementTree.fromstring(draw_chart("", {"a": [(1, 0.5), (4000, 0.4)]}, "step", "loss"))
    width = float(next(root.iter("svg")).get("viewBox").split()[2])
    (label,) = (each for each in root.iter("text") if each.text == "4,000")
    parts = {"middle": 0.5, "end": 0.0}[label.get("text-anchor")]
    assert float(label.get("x")) + parts * 7 * len(label.text) <= width  # a digit has 7 units in the page's font


def test_gaps_are_left_out_one_point_is_drawn_and_none_is_no_chart():
    assert "circle" in draw_chart("", {"train": [(3, 0.7), (4, math.nan)]}, "step", "loss")
    assert draw_chart("", {"train": [(3, math.nan)], "val": []}, "step", "loss") == ""


def test_rows_are_those_of_the_rarest_line_and_at_most_24():
    columns = {"train": [(k, k / 10) for k in range(1000)], "val": [(k, 5.0) for k in range(0, 1000, 100)]}
    rows = number_rows(columns)
    assert len(rows) == 10 and rows[-1] == ["900", "90", "5"]
    assert len(number_rows({"train": columns["train"]})) == 24


@pytest.mark.parametrize(("low", "high"), [(0.31, 0.98), (1, 125), (0, 1e5), (-3e-4, 2e-4)])
def test_ticks_are_few_round_and_enclosing(low, high):
    ticks = _ticks(low, high, 5)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 8


def test_ticks_of_a_logarithmic_axis():
    assert _powers(0.9, 30) == [1, 2, 5, 10, 20]
    assert _powers(1e-3, 1e3) == [1e-3, 1e-2, 0.1, 1, 10, 100, 1000]
