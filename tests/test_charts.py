"""Charts: scales, ticks and positions, computed by hand."""

import re

import pytest

from llm_pruner.output.page.charts import (
    BOTTOM,
    HEIGHT,
    RIGHT,
    TOP,
    WIDTH,
    Line,
    Point,
    axes,
    curve,
    scatter,
)
from llm_pruner.output.page.columns import Bar, bars, boxes, columns
from llm_pruner.output.page.labels import (
    FONT,
    WIDE_LETTER,
    Box,
    around,
    best_place,
    text_box,
)
from llm_pruner.output.page.scales import Scale, fitting, linear, logarithmic
from llm_pruner.output.page.wording import (
    duration,
    number,
    percent,
    shortened,
    size,
    times,
)

LETTER = WIDE_LETTER * FONT


def elements(drawing: str, name: str, kind: str = "") -> list[dict[str, str]]:
    """The attributes of every such element of a class."""
    found = [dict(re.findall(r'([\w-]+)="([^"]*)"', text)) for text in re.findall(f"<{name} ([^>]*)>", drawing)]
    return [own for own in found if kind in own.get("class", "").split() or not kind]


def texts(drawing: str) -> list[str]:
    return re.findall(r"<text [^>]*>(?:<tspan>)?(?:<title>[^<]*</title>)?([^<]*)", drawing)


@pytest.mark.parametrize(
    ("values", "options", "ticks"),
    [
        ([0.3, 9.2], {}, (0, 2, 4, 6, 8, 10)),
        ([3, 9.2], {"zero": True}, (0, 2, 4, 6, 8, 10)),
        ([1.602, 1.604], {}, (1.602, 1.6025, 1.603, 1.6035, 1.604)),
        ([0.1, 0.3], {}, (0.1, 0.15, 0.2, 0.25, 0.3)),
        ([-3, 2], {}, (-3, -2, -1, 0, 1, 2)),
        ([522_912, 1_783_104], {}, (500_000, 1_000_000, 1_500_000, 2_000_000)),
        ([5, 5], {}, (4.5, 4.6, 4.7, 4.8, 4.9, 5, 5.1, 5.2, 5.3, 5.4, 5.5)[::2]),
        ([0, 0], {"zero": True}, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        ([2], {"zero": True, "count": 2}, (0, 1, 2)),
    ],
)
def test_linear_ticks_are_round_and_hold_the_values(values, options, ticks):
    scale = linear(values, 0, 1, **options)
    assert scale.ticks == pytest.approx(ticks) or values == [5, 5]
    assert (scale.low, scale.high) == (scale.ticks[0], scale.ticks[-1])
    assert scale.low <= min(values) <= max(values) <= scale.high
    steps = {round(b - a, 9) for a, b in zip(scale.ticks, scale.ticks[1:])}
    assert len(steps) == 1
    assert f"{steps.pop():e}"[0] in "125"


def test_linear_positions():
    scale = linear([0, 10], 100, 300)
    assert [scale(value) for value in (0, 2.5, 10)] == [100, 150, 300]
    assert [scale(value) for value in (-5, 99)] == [100, 300]  # never outside
    falling = linear([0, 10], 300, 100)
    assert falling(2.5) == 250


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([1.6, 11.7], (1, 2, 5, 10, 20)),
        ([2, 20], (2, 5, 10, 20)),
        ([0.0011, 0.36], (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)),
        ([6, 80_000], (10, 100, 1000, 10_000, 100_000)),
        ([3, 3], (2, 5)),
        ([1e-9, 1e9], tuple(10.0**n for n in range(-9, 10, 3))),
    ],
)
def test_logarithmic_ticks(values, ticks):
    scale = logarithmic(values, 0, 1)
    assert scale.ticks == pytest.approx(ticks, rel=1e-9)
    assert scale.low <= min(values) <= max(values) <= scale.high


def test_logarithmic_positions():
    scale = logarithmic([1, 100], 0, 200)
    assert [scale(value) for value in (1, 10, 100)] == pytest.approx([0, 100, 200])
    assert scale(0) == scale(-1) == 0


def test_logarithmic_where_values_are_far_apart():
    assert fitting([1, 5], 0, 1).log
    assert not fitting([1, 4.9], 0, 1).log
    assert not fitting([0, 1000], 0, 1).log
    assert not fitting([-1, 1000], 0, 1).log


def test_ticks_have_one_unit():
    said = lambda scale: [scale.label(tick) for tick in scale.ticks]  # noqa: E731
    assert said(linear([0, 1.9e6], 0, 1)) == ["0", "0.5M", "1M", "1.5M", "2M"]
    assert said(linear([0, 14336], 0, 1, count=4)) == ["0", "5k", "10k", "15k"]
    assert said(linear([0, 8.03e9], 0, 1)) == ["0", "2B", "4B", "6B", "8B", "10B"]
    assert said(linear([-0.5, 0.5], 0, 1)) == ["−0.6", "−0.4", "−0.2", "0", "0.2", "0.4", "0.6"]
    assert said(linear([0, 4e-6], 0, 1)) == ["0", "1e−6", "2e−6", "3e−6", "4e−6"]
    assert said(logarithmic([1, 900_000], 0, 1)) == ["1", "10", "100", "1000", "10k", "100k", "1M"]


def test_labels_of_ticks_that_have_no_room_are_left_out():
    x, y = Scale(0, 1, 50, 100, (0, 0.25, 0.5, 0.75, 1)), linear([0, 1], 100, 50)
    drawing = "".join(axes(x, y, "", ""))
    assert texts(drawing)[-3:] == ["0", "0.5", "1"]
    assert len(elements(drawing, "line", "axis")) == 1 + 5  # their marks stay


def test_scatter_puts_points_where_their_values_are():
    drawing = scatter("t", [Point("one", 1e6, 10.0), Point("two", 2e6, 100.0, 2)], "parameters", "perplexity")
    assert "perplexity (log scale)" in drawing
    left = 3 * LETTER + 10  # the widest tick is 200
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT - 5
    one, two = elements(drawing, "circle", "dot")
    assert (float(one["cx"]), float(two["cx"])) == pytest.approx((left, right), abs=0.01)
    # from 5 to 200: log(10/5) / log(40) = 0.18790, log(100/5) / log(40) = 0.81210
    heights = [bottom - share * (bottom - TOP) for share in (0.18790, 0.81210)]
    assert (float(one["cy"]), float(two["cy"])) == pytest.approx(heights, abs=0.01)
    assert two["class"] == "dot c2"
    assert {"one", "two", "1M", "2M"} <= set(texts(drawing))


def test_small_differences_look_small():
    drawing = scatter("t", [Point("one", 1.0, 1.602), Point("two", 2.0, 1.604)], "x", "y")
    one, two = (float(own["cy"]) for own in elements(drawing, "circle"))
    assert 0 < one - two < 5


def test_columns():
    drawing = columns("t", [8, 8], [4, 0], "heads", height=100)
    ghosts, (bar,) = elements(drawing, "rect", "ghost"), elements(drawing, "rect", "bar")
    bottom, top = 100 - BOTTOM, TOP  # 0 and 8, which is a tick
    assert [(float(own["y"]), float(own["height"])) for own in ghosts] == [(top, bottom - top)] * 2
    assert (float(bar["y"]), float(bar["height"])) == ((top + bottom) / 2, (bottom - top) / 2)
    left = LETTER + 10
    slot = (WIDTH - RIGHT - left) / 2
    middles = [float(own["x"]) + float(own["width"]) / 2 for own in ghosts]
    assert middles == pytest.approx([left + slot / 2, left + 1.5 * slot], abs=0.02)
    assert [text for text in texts(drawing) if text in ("4", "gone")].count("gone") == 1


def test_boxes():
    row = [2.0, 4.0, 5.0, 6.5, 7.0, 8.0, 9.0]
    drawing = boxes("t", [row], "score")
    at = lambda value: 220 - BOTTOM - (220 - BOTTOM - TOP) * (value - 2) / 8  # noqa: E731, from 2 to 10
    (box,), (whisker,), (line,), (median,) = (
        elements(drawing, name, kind)
        for name, kind in (("rect", "box"), ("line", "whisker"), ("line", "c1"), ("line", "median"))
    )
    assert (float(box["y"]), float(box["height"])) == pytest.approx((at(7), at(5) - at(7)), abs=0.01)
    assert (float(whisker["y1"]), float(whisker["y2"])) == pytest.approx((at(2), at(9)), abs=0.01)
    assert (float(line["y1"]), float(line["y2"])) == pytest.approx((at(4), at(8)), abs=0.01)
    assert float(median["y1"]) == float(median["y2"]) == pytest.approx(at(6.5), abs=0.01)
    assert "log scale" in boxes("t", [[1e-12, 1e-4, 1e-3, 0.01, 0.1, 1, 10]], "score")


@pytest.mark.parametrize("inner", [[4.0, 5.0, 6.5, 7.0, 8.0], [-2.0, -1.0, 0.0, 1.0, 2.0], [1.0, 3.0, 4.0, 5.0, 9.0]])
def test_two_units_do_not_press_the_others_flat(inner):
    (box,) = elements(boxes("t", [[-1e9, *inner, 1e9]], "score"), "rect", "box")
    assert float(box["height"]) > 8


def test_bars():
    drawing = bars("t", [("task", [Bar("a", 0.5, "50.0", 0, 0.25, 0.75), Bar("b", 1.0, "100.0"), Bar("c", None, "–")])])
    one, two = elements(drawing, "rect", "bar")
    full = WIDTH - 5 * LETTER - 10 - 2  # room for the longest text, and from x = 2
    assert (float(two["width"]), float(one["width"])) == pytest.approx((full, full / 2), abs=0.02)
    (spread,) = elements(drawing, "line", "spread")
    assert (float(spread["x1"]), float(spread["x2"])) == pytest.approx((2 + full / 4, 2 + full * 0.75), abs=0.02)
    half = bars("t", [("task", [Bar("a", 0.5, "100.0")])] * 2, full=1.0)
    assert float(elements(half, "rect", "bar")[0]["width"]) == pytest.approx((full + 2 - 4 * LETTER - 10) / 2, abs=0.02)


def test_curve_has_gaps_and_levels():
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 2.0), (4, 1.0)]
    drawing = curve("t", [Line(points, 3, dots=True)], "layer", "error", [("dense", 1.5, 0)], height=100)
    (path,) = elements(drawing, "path", "line")
    assert re.sub(r"[\d. ]+", "", path["d"]) == "MLML"
    assert len(elements(drawing, "circle", "dot")) == 4
    (level,) = elements(drawing, "line", "level")
    ends = {float(y) for y in re.findall(r" ([\d.]+)", path["d"])}
    assert float(level["y1"]) == float(level["y2"]) == pytest.approx(sum(ends) / 2, abs=0.1)
    assert [text for text in texts(drawing) if text.isdigit()][-5:] == ["0", "1", "2", "3", "4"]  # no half layers


def test_labels_go_where_nothing_is():
    frame = Box(0, 0, 200, 200)
    (x, y, anchor), first = best_place("label", around(100, 100), [], frame)
    assert (x, y, anchor) == (109, 104, "start")
    place, box = best_place("label", around(100, 100), [first], frame)
    assert place[2] == "end"
    assert box.overlap(first) == 0
    place, box = best_place("label", around(195, 100), [], frame)  # it would leave the frame
    assert frame.holds(box)
    assert best_place("label", [(0, 10, "start")], [Box(0, 0, 200, 200)], frame)[0] == (0, 10, "start")  # no way out
    dear = lambda box: 1.0 if box.right > 100 else 0.0  # noqa: E731
    assert best_place("label", around(100, 100), [], frame, dear)[0] == (91, 104, "end")
    assert Box(0, 0, 2, 2).overlap(Box(1, 1, 5, 5)) == 1
    assert text_box("ab", 100, 50, "end").left == pytest.approx(100 - 2 * LETTER)
    assert text_box("ab", 100, 50, "middle").left == pytest.approx(100 - LETTER)


def test_numbers_as_people_read_them():
    assert [number(value) for value in (1234567, 0, 0.0, 1.6016, 34.432, 162.63, 1392.83, 0.001109, 3.2e-7)] == [
        "1,234,567", "0", "0", "1.602", "34.43", "162.6", "1,393", "0.001109", "3.2e-07",
    ]  # fmt: skip
    assert [number(value) for value in (None, float("inf"), float("nan"))] == ["not finite"] * 3
    assert [size(value) for value in (12, 2_017_920, 16_060_522_496, 999_900)] == [
        "12 bytes",
        "2.02 MB",
        "16.1 GB",
        "1,000 kB",
    ]
    assert [duration(value) for value in (0.01, 9.87, 59, 62, 3725)] == [
        "0.01 s",
        "9.87 s",
        "59 s",
        "1 min 2 s",
        "1 h 2 min",
    ]
    assert [times(value) for value in (1.0022, 2.103, 73.25, 1234.5, 0.5)] == [
        "×1.002",
        "×2.10",
        "×73.2",
        "×1,234",
        "×0.50",
    ]
    assert (percent(0.4341), percent(None), times(None)) == ("43.4 %", "not finite", "not finite")
    assert shortened("a" * 20 + "b" * 20, 11) == "aaaaa…bbbbb"
