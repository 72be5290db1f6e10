"""Charts as SVG, numbers as people read them."""

import math
import re

import pytest

from llm_pruner.output import charts
from llm_pruner.output.charts import Bars, bars, boxes, columns, curve, scatter, short
from llm_pruner.output.wording import (
    anything,
    duration,
    known,
    number,
    percent,
    plural,
    size,
    span,
    times,
)

POINTS = [("dense", 1e6, 20.0, 0), ("pruned", 6e5, 60.0, 1), ("pruned", 5e5, 80.0, 1)]
ROW = [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0]
CHARTS = {
    "scatter": lambda title: scatter(title, POINTS, "parameters", "perplexity"),
    "curve": lambda title: curve(title, [(0, 2.0), (1, math.nan), (2, 1.0)], 1, "o-", "s", "loss", [("dense", 1.5, 0)]),
    "columns": lambda title: columns(title, [8, 8, 8], [8, 4, 0], "heads"),
    "boxes": lambda title: boxes(title, [ROW, [10 * value for value in ROW]], "score"),
    "one box": lambda title: boxes(title, [ROW], "score"),
    "bars": lambda title: bars(title, ["a", "b"], [Bars("m", 0, [1.0, None], [(0.1, 0.2), (0, 0)])], "%"),
}


def texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def heights(svg: str, colour: str) -> list[float]:
    """Of the rectangles of a colour, from bottom to top."""
    found = re.findall(r'<path d="([^"]*)"[^>]*style="fill: ' + re.escape(colour), svg)
    ys = [[float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", path)] for path in found]
    return [round(max(own) - min(own), 3) for own in ys]


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_is_one_element_that_says_what_it_is(name):
    svg = CHARTS[name]("a <title> & more")
    assert svg.startswith("<svg ")
    assert svg.endswith("</svg>")
    assert 'role="img" aria-label="a &lt;title&gt; &amp; more" class="chart"' in svg
    assert not re.search(r"https?:|<style|<metadata|<\?xml|#[0-9a-f]{6}", svg)
    assert svg == CHARTS[name]("a <title> & more"), "the same data, the same bytes"


def test_without_matplotlib_there_is_none(monkeypatch):
    monkeypatch.setattr(charts.importlib.util, "find_spec", lambda name: None)
    assert {CHARTS[name]("title") for name in CHARTS} == {None}


def test_names_are_text_and_in_the_legend_once():
    svg = scatter("t", [("<b>$x$ caf\udce9", 1.0, 2.0, 1), ("<b>$x$ caf\udce9", 2.0, 3.0, 1)], "x", "y")
    assert texts(svg).count("&lt;b&gt;$x$ caf?") == 1


def test_values_that_are_far_apart_are_on_a_logarithmic_axis():
    near, far = (scatter("t", [("a", 1.0, 20.0, 0), ("b", 2.0, high, 1)], "x", "y") for high in (60.0, 6000.0))
    assert {"30", "40", "50"} <= set(texts(near))
    assert {"100", "1000"} <= set(texts(far))
    assert "50" in texts(far)
    assert "3000" not in texts(far)


def test_columns_are_as_high_as_their_widths():
    svg = columns("t", [8, 8, 8], [8, 4, 0], "heads")
    before, after = heights(svg, "var(--ghost)"), heights(svg, "var(--c1)")
    assert len(set(before)) == 1
    assert after == pytest.approx([before[0], before[0] / 2, 0], abs=1e-3)


def test_a_curve_has_gaps_where_nothing_is_known():
    svg = curve("t", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, 3.0)], 2, "-", "s", "loss")
    (line,) = re.findall(r'<path d="([^"]*)"[^>]*stroke: var\(--c2\)', svg)
    assert line.count("M") == 2


def test_two_units_do_not_press_the_others_flat():
    for low in (-1.0, 0.5):  # on a linear axis, on a logarithmic one
        row = [low, low, 2.0, 3.0, 4.0, 5.0]
        far, near = (heights(boxes("t", [[*row, most]], "score"), "var(--card)") for most in (1e6, 5.0))
        assert far[0] > near[0] / 3


@pytest.mark.parametrize(
    ("value", "said"),
    [(1_500_000, "1.5M"), (20_000, "20k"), (5000, "5000"), (0.05, "0.05"), (1e-6, "1e-06"), (0, "0"), (2e9, "2B")],
)
def test_ticks_are_short(value, said):
    assert short(value) == said


def test_numbers_as_people_read_them():
    assert [number(value) for value in (1234567, 12.3456, 0.012346, 3e-7, 0.0, None, float("inf"))] == [
        "1,234,567", "12.35", "0.01235", "3e-07", "0", "not finite", "not finite",
    ]  # fmt: skip
    assert [size(value) for value in (12, 2_020_000, 999_900_000, 16e9)] == ["12 bytes", "2.02 MB", "1,000 MB", "16 GB"]
    assert [duration(value) for value in (0.02, 1.5, 42.0, 125, 3601)] == [
        "20.0 ms", "1.5 s", "42 s", "2 min 5 s", "1 h 0 min",
    ]  # fmt: skip
    assert (percent(0.123), percent(None), percent(float("nan"))) == ("12.3 %", "not finite", "not finite")
    assert [times(value) for value in (1.0021, 0.38, 2.1, 73.3, 1234.5, 0.0, float("inf"))] == [
        "×1.002", "×0.38", "×2.10", "×73.3", "×1,234", "×0.00", "not finite",
    ]  # fmt: skip
    assert (known(None), known(3)) == ("–", "3")
    assert (span([3, 3]), span([4, 1000]), span(7)) == ("3", "4–1,000", "7")
    assert (plural(1, "model"), plural(1200, "model")) == ("1 model", "1,200 models")


def test_any_value_is_text():
    assert [anything(value) for value in ("a", True, None, 3, 0.25, 1e-9, ["a", 1], [], [[1]], {"a": 1})] == [
        "a", "yes", "not finite", "3", "0.25", "1e-09", "a, 1", "none", "[[1]]", '{"a": 1}',
    ]  # fmt: skip
