"""Charts of layers and of groups: columns, boxes, horizontal bars."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm_pruner.output.page.charts import (
    BOTTOM,
    RIGHT,
    TOP,
    WIDTH,
    axes,
    plot_left,
    svg,
)
from llm_pruner.output.page.labels import text_width
from llm_pruner.output.page.markup import Markup, tag
from llm_pruner.output.page.scales import WIDE, linear, logarithmic
from llm_pruner.output.page.wording import number, shortened


@dataclass(frozen=True)
class Bar:
    """low, high: the spread around the value. text: written behind it."""

    label: str
    value: float | None
    text: str
    colour: int = 1
    low: float | None = None
    high: float | None = None


def columns(
    title: str, before: Sequence[float], after: Sequence[float], y_title: str, colour: int = 1, height: float = 190
) -> Markup:
    """One column per layer, `after` inside the outline of `before`; an empty outline is a layer that is gone."""
    most = max(*before, *after)
    y = linear([most], height - BOTTOM, TOP, zero=True, count=min(4, most))  # there are no halves
    slots, drawn = Slots(plot_left(y), len(before)), []
    labelled = slots.width >= max(text_width(f"{value:,}") for value in after) + 8
    for layer, (old, new) in enumerate(zip(before, after)):
        note = tag("title", f"layer {layer}: {old:,} before, {new:,} after")
        drawn.append(tag("rect", note, **slots.box(layer, 0.84, y(old), y.start), class_="ghost"))
        if new:
            drawn.append(tag("rect", note, **slots.box(layer, 0.6, y(new), y.start), class_=f"bar c{colour}"))
        if labelled:
            text = f"{new:,}" if new else "gone"
            drawn.append(tag("text", text, x=slots.middle(layer), y=y(new) - 4, text_anchor="middle"))
    return svg(title, height, axes(None, y, "layer", y_title), slots.ticks(height), drawn)


def boxes(title: str, rows: Sequence[Sequence[float]], y_title: str, x_title: str = "layer") -> Markup:
    """One box per row of seven quantiles: all (thin), 10 to 90 % (line), 25 to 75 % (box), the median.

    The axis reaches at most as far again as the thick lines, so a thin one may end with it.
    """
    height = 220
    least, low, _, _, _, high, most = (pick(ends) for pick, ends in zip((min,) * 5 + (max,) * 2, zip(*rows)))
    if low > 0 and most / low >= WIDE:
        y = logarithmic([max(least, low * low / high), min(most, high * high / low)], height - BOTTOM, TOP)
    else:
        y = linear([max(least, 2 * low - high), min(most, 2 * high - low)], height - BOTTOM, TOP)
    slots, drawn = Slots(plot_left(y), len(rows)), []
    for layer, row in enumerate(rows):
        least, q10, q25, middle, q75, q90, most = map(y, row)
        x = slots.middle(layer)
        box = slots.box(layer, 0.6, q75, q25, most=26)
        ends = {"x1": box["x"], "x2": box["x"] + box["width"]}
        drawn += [
            tag("line", x1=x, x2=x, y1=least, y2=most, class_="whisker"),
            tag("line", x1=x, x2=x, y1=q10, y2=q90, class_="line c1"),
            tag("rect", tag("title", f"{x_title} {layer}: median {number(row[3])}"), **box, class_="box c1"),
            tag("line", **ends, y1=middle, y2=middle, class_="median"),
        ]
    ticks = slots.ticks(height) if len(rows) > 1 else None
    return svg(title, height, axes(None, y, x_title, y_title), ticks, drawn)


def bars(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], full: float = 0.0) -> Markup:
    """Horizontal bars from 0 in groups, each with its text behind it; where each is alone, beside its group's name.

    full: the least value that the axis reaches to.
    """
    every = [bar for _, own in groups for bar in own]
    alone = all(len(own) == 1 for _, own in groups)
    left = max(text_width(shortened(label)) for label, _ in groups) + 10 if alone else 2
    right = WIDTH - max(text_width(bar.text) for bar in every) - 10
    ends = [value for bar in every for value in (bar.value, bar.high) if value is not None]
    x, top, drawn = linear([*ends, 0.0], left, right, zero=True), 4.0, []
    x = replace(x, high=max([*ends, full]) or 1.0)
    for label, own in groups:
        text = tag("tspan", tag("title", label), shortened(label))
        if alone:
            drawn.append(tag("text", text, x=left - 8, y=top + 13, text_anchor="end"))
        else:
            drawn.append(tag("text", text, x=left, y=top + 14, class_="strong"))
            top += 20
        drawn.append(tag("line", x1=left, x2=left, y1=top - 1, y2=top + 19 * len(own), class_="axis"))
        for bar in own:
            end = x(bar.value or 0.0)
            if bar.value is not None:
                shape = {"x": left, "y": top + 1, "width": max(end - left, 1.0), "height": 14, "rx": 2}
                drawn.append(
                    tag("rect", tag("title", f"{bar.label}: {bar.text}"), **shape, class_=f"bar c{bar.colour}")
                )
            if bar.low is not None and bar.high is not None:
                drawn.append(tag("line", x1=x(bar.low), x2=x(bar.high), y1=top + 8, y2=top + 8, class_="spread"))
                end = max(end, x(bar.high))
            drawn.append(tag("text", bar.text, x=end + 6, y=top + 12.5))
            top += 19
        top += 0 if alone else 8
    return svg(title, top + 4, drawn)


@dataclass(frozen=True)
class Slots:
    """Equal places for layers, side by side."""

    left: float
    number: int

    @property
    def width(self) -> float:
        return (WIDTH - RIGHT - self.left) / self.number

    def middle(self, place: int) -> float:
        return self.left + (place + 0.5) * self.width

    def box(self, place: int, share: float, top: float, bottom: float, most: float = 60) -> dict:
        width = min(share * self.width, most * share / 0.6)
        return {
            "x": self.middle(place) - width / 2,
            "y": top,
            "width": width,
            "height": max(bottom - top, 0.5),
            "rx": 1,
        }

    def ticks(self, height: float) -> list[Markup]:
        step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * self.width >= 22)
        at = height - BOTTOM + 18
        return [tag("text", n, x=self.middle(n), y=at, text_anchor="middle") for n in range(0, self.number, step)]
