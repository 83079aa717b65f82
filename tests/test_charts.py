"""Charts whose geometry is checked against the numbers drawn."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_llm.evaluation import charts
from user_llm.evaluation.charts import line_chart, say

VALUES = st.floats(-1e6, 1e6).map(lambda v: round(v, 3))
POSITIVE = st.floats(1e-3, 1e9)


def corners(line):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([-\d.e]+) ([-\d.e]+)", line.path)]


@pytest.mark.parametrize("scale", ["linear", "log"])
@given(st.data())
def test_every_point_lies_inside_the_plot_and_ticks_within_the_axes(scale, data):
    values = VALUES if scale == "linear" else POSITIVE
    points = data.draw(st.lists(st.tuples(values, values), min_size=1, max_size=8))
    chart = line_chart({"a": points, "b": points[:1]}, "x", "y", scale, scale)
    for line in chart.lines:
        for x, y in corners(line):
            assert charts.LEFT - 0.1 <= x <= chart.right + 0.1
            assert charts.TOP - 0.1 <= y <= charts.BOTTOM + 0.1
    assert chart.y_ticks
    for axis in (chart.x, chart.y):
        assert all(axis.low <= tick <= axis.high * (1 + 1e-9) for tick in axis.ticks if tick > 0)


@pytest.mark.parametrize("value", [100_001.0, 3e-4, 1e6, 7.0])
def test_logarithmic_axis_begins_at_a_tick(value):
    axis = charts.Axis.over([value], "x", "log")
    assert axis.low == axis.ticks[0] <= value <= axis.high


def test_positions_are_proportional_to_values():
    (line,) = line_chart({"a": [(0, 0.0), (50, 1.0), (100, 2.0)]}, "x", "y").lines
    (x0, y0), (x1, y1), (x2, y2) = corners(line)
    assert (x0, x2) == (charts.LEFT, charts.WIDTH - 12)
    assert (y0, y2) == (charts.BOTTOM, charts.TOP)
    assert (x1, y1) == pytest.approx(((x0 + x2) / 2, (y0 + y2) / 2), abs=0.1)


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis():
    (line,) = line_chart({"a": [(1, 1.0), (10, 10.0), (100, 100.0)]}, "x", "y", "log", "log").lines
    (x0, _), (x1, _), (x2, _) = corners(line)
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)


def test_what_cannot_be_drawn_leaves_a_gap():
    (line,) = line_chart({"loss": [(1, 3.0), (2, math.nan), (3, 2.0), (4, 1.0)]}, "x", "y").lines
    assert re.sub(r"[^ML]", "", line.path) == "MML"
    long = [(step, 1.0) for step in range(30)] + [(30, math.nan)]
    (line,) = line_chart({"loss": long}, "x", "y").lines
    assert [said for *_, said in line.markers] == ["loss: 1 at 29"]
    assert line_chart({"loss": [(1, math.inf)]}, "x", "y") is None
    assert line_chart({"cost": [(1, 0.0)]}, "x", "y", "log", "log") is None
    assert line_chart({}, "x", "y") is None


def test_names_of_lines_that_end_together_do_not_touch():
    chart = line_chart({name: [(0, 0.0), (1, 1.0)] for name in "abc"}, "x", "y")
    heights = sorted(line.name_y for line in chart.lines)
    assert min(b - a for a, b in pairwise(heights)) >= charts.NAME_HEIGHT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (20000, "20,000"),
        (0.30000000000000004, "0.3"),
        (0.3134567, "0.3135"),
        (12.0, "12"),
        (123456.7, "123,457"),
        (-1.5, "-1.5"),
        (math.nan, "nan"),
    ],
)
def test_numbers_are_said_in_few_digits(value, text):
    assert say(value) == text


def test_chart_as_a_file_is_well_formed_and_names_its_lines():
    drawn = line_chart({"a": [(1, 2), (2, 3)], "b & c": [(1, 1), (2, 5)]}, "x", "y")
    root = ElementTree.fromstring(charts.svg(drawn))
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{svg}svg" and len(root.findall(f".//{svg}path")) == 2
    names = [text.text for text in root.iter(f"{svg}text") if text.get("class") == "name"]
    assert names == ["a", "b & c"]


def test_pixels_show_words_too():
    points = {"": [(1, 2), (3, 5)]}
    drawn = [charts.line_chart(points, "events", label) for label in ("recall", "accuracy")]
    one, other = (charts.png(chart) for chart in drawn if chart)
    assert one != other


def test_the_last_tick_is_whole():
    chart = charts.line_chart({"": [(1000, 1), (20000, 2)]}, "x", "y", "log")
    assert chart is not None
    place, text = chart.x_ticks[-1]
    assert text == "20,000" and place + len(text) * charts.NAME_WIDTH / 2 <= charts.WIDTH


def test_ticks_do_not_touch():
    ends = [(1.0, 0.1), (2e5, 0.2)]
    roomy, narrow = ({"a": ends, name: ends} for name in ("b", "a name that is rather long"))
    drawn = [line_chart(series, "x", "y", "log") for series in (roomy, narrow)]
    said = [[text for _, text in chart.x_ticks] for chart in drawn if chart]
    assert said == [["1", "10", "100", "1,000", "10,000", "100,000"], ["1", "100", "10,000"]]


def test_what_hardly_differs_looks_alike_from_zero():
    heights = {"line": [(0, 0.22), (1, 0.23)]}
    near, far = line_chart(heights, "x", "y"), line_chart(heights, "x", "y", from_zero=True)
    assert far.y_ticks[0][1] == "0" != near.y_ticks[0][1]
