"""Charts as inline SVG: no transforms, only absolute coordinates inside the view box; colours come from the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_pruner.output.page.labels import (
    FONT,
    Box,
    around,
    best_place,
    between,
    nearest,
    text_box,
    text_width,
)
from llm_pruner.output.page.markup import Markup, tag
from llm_pruner.output.page.scales import WIDE, Scale, fitting, linear
from llm_pruner.output.page.wording import number, shortened

WIDTH, HEIGHT = 400, 280
ALIKE = 1.05  # values that differ by less are not drawn far apart
TOP, BOTTOM, RIGHT, RADIUS = 36, 44, 16, 5


@dataclass(frozen=True)
class Point:
    """note: what a pointer that rests on it is told."""

    label: str
    x: float
    y: float
    colour: int = 1
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A gap where y is None. dots: a dot for each point. faint: behind another line."""

    points: Sequence[tuple[float, float | None]]
    colour: int = 1
    dots: bool = False
    faint: bool = False


def svg(title: str, height: float, *children) -> Markup:
    box = f"0 0 {WIDTH} {math.ceil(height)}"
    inside = (tag("title", title), *children)
    return tag("svg", *inside, viewBox=box, role="img", aria_label=title, class_="chart")


def scatter(title: str, points: Sequence[Point], x_title: str, y_title: str) -> Markup:
    """Every point with its label, at the nearest place where it covers nothing."""
    y = fitting(_roomy([point.y for point in points]), HEIGHT - BOTTOM, TOP)
    x = fitting([point.x for point in points], plot_left(y), WIDTH - RIGHT - RADIUS)
    places = [(x(point.x), y(point.y)) for point in points]
    taken, written = [Box.at(*place, RADIUS) for place in places], []
    frame = Box(x.start, TOP - 8, WIDTH, y.start - 2)
    leaders, labels, dots = [], [], []
    for point, at in zip(points, places):
        dots.append(_dot(*at, point.colour, point.note or point.label))
        text = shortened(point.label)
        if not text:
            continue

        def crossed(box: Box, at=at) -> float:
            """How much of other labels is on the way from the point."""
            return 20 * sum(part.overlap(other) for part in between(at, nearest(*at, box)) for other in written)

        (text_x, text_y, anchor), box = best_place(text, around(*at), taken, frame, crossed)
        taken.append(box)
        written.append(box)
        labels.append(tag("text", text, x=text_x, y=text_y, text_anchor=anchor, class_="label"))
        end = nearest(*at, box)
        if math.dist(at, end) > 3 * RADIUS:
            leaders.append(tag("line", x1=at[0], y1=at[1], x2=end[0], y2=end[1], class_="leader"))
            taken += between(at, end)
    return svg(title, HEIGHT, axes(x, y, x_title, y_title), leaders, labels, dots)


def curve(
    title: str,
    lines: Sequence[Line],
    x_title: str,
    y_title: str,
    levels: Sequence[tuple[str, float, int]] = (),
    height: float = 240,
) -> Markup:
    """Lines, with horizontal ones at the `levels` (label, value, colour)."""
    points = [(px, py) for line in lines for px, py in line.points if py is not None]
    values = [py for _, py in points] + [value for _, value, _ in levels]
    y = fitting(_roomy(values), height - BOTTOM, TOP)
    last = max(px for px, _ in points)
    count = min(5, last or 1) if isinstance(last, int) else 5  # layers and steps have no halves
    x = linear([last], plot_left(y) + RADIUS + 2, WIDTH - RIGHT - RADIUS, zero=True, count=count)
    x = replace(x, high=last or x.high)
    x = replace(x, ticks=tuple(tick for tick in x.ticks if tick <= x.high))
    drawn, taken = [], [box for line in lines for box in _covered(line, x, y)]
    taken += [Box(x.start, y(value) - 1, x.end, y(value) + 1) for _, value, _ in levels]
    for label, value, colour in levels:
        at = y(value)
        drawn.append(tag("line", x1=x.start, y1=at, x2=x.end, y2=at, class_=f"level c{colour}"))
        ends = ((x.end, "end"), (x.start + 4, "start"), ((x.start + x.end) / 2, "middle"))
        places = [(px, py, anchor) for py in (at - 5, at + FONT + 2) for px, anchor in ends]
        (text_x, text_y, anchor), box = best_place(label, places, taken, Box(x.start, TOP - 8, WIDTH, y.start))
        taken.append(box)
        drawn.append(tag("text", label, x=text_x, y=text_y, text_anchor=anchor, class_="label"))
    for line in lines:
        drawn.append(tag("path", d=_path(line, x, y), class_=f"line c{line.colour}{' faint' * line.faint}"))
        if line.dots:
            known = [(px, py) for px, py in line.points if py is not None]
            drawn += [_dot(x(px), y(py), line.colour, f"{number(py)} at {number(px)}") for px, py in known]
    return svg(title, height, axes(x, y, x_title, y_title), drawn)


def plot_left(y: Scale) -> float:
    """Where the plot begins, so that the labels of the ticks fit in front of it."""
    return max(text_width(y.label(tick)) for tick in y.ticks) + 10


def axes(x: Scale | None, y: Scale, x_title: str, y_title: str) -> list[Markup]:
    """Ticks, grid and titles; the title of y lies above its axis."""
    left, bottom = plot_left(y), y.start
    drawn = [tag("text", y_title + " (log scale)" * y.log, x=2, y=14, class_="title")]
    for tick in y.ticks:
        drawn.append(tag("line", x1=left, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="rule"))
        drawn.append(tag("text", y.label(tick), x=left - 6, y=y(tick) + 4, text_anchor="end"))
    drawn.append(tag("line", x1=left, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    title = x_title + (" (log scale)" if x and x.log else "")
    drawn.append(tag("text", title, x=WIDTH - RIGHT, y=bottom + 36, text_anchor="end", class_="title"))
    behind = 0.0
    for tick in x.ticks if x else ():
        text = x.label(tick)
        place = min(x(tick), WIDTH - text_width(text) / 2)
        drawn.append(tag("line", x1=x(tick), x2=x(tick), y1=bottom, y2=bottom + 4, class_="axis"))
        box = text_box(text, place, bottom + 18, "middle")
        if box.left > behind:
            drawn.append(tag("text", text, x=place, y=bottom + 18, text_anchor="middle"))
            behind = box.right + 4
    return drawn


def _path(line: Line, x: Scale, y: Scale) -> str:
    """Straight from point to point; a new start behind each gap."""
    parts, pen = [], "M"
    for px, py in line.points:
        if py is None:
            pen = "M"
        else:
            parts.append(f"{pen}{x(px):.1f} {y(py):.1f}")
            pen = "L"
    return "".join(parts)


def _covered(line: Line, x: Scale, y: Scale) -> list[Box]:
    """What a line covers: a box at each point, and some between two."""
    places = [(x(px), y(py)) for px, py in line.points if py is not None]
    found = [Box.at(*place, RADIUS) for place in places]
    for one, other in zip(places, places[1:]):
        found += between(one, other)
    return found


def _roomy(values: Sequence[float]) -> list[float]:
    """The least and the largest value with some room around them, so that a small difference does not look large."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= WIDE:
        return [low / 1.3, high * 1.3]
    if low > 0 and high / low < ALIKE:
        return [low / ALIKE, high * ALIKE]
    margin = 0.1 * (high - low)
    return [min(low, max(low - margin, 0.0)), high + margin]


def _dot(x: float, y: float, colour: int, note: str) -> Markup:
    return tag("circle", tag("title", note), cx=x, cy=y, r=RADIUS, class_=f"dot c{colour}")
