"""Charts by matplotlib, as SVG to put into a page: text stays text, colours are the page's, the same data same bytes.

matplotlib is the extra `report`; without it every chart is None, and the page has its tables.
"""

import functools
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup, escape

from llm_pruner.output.wording import number

INCHES = 5.6
# the largest of positive values over the smallest from which an axis is logarithmic
WIDE = 5
# Stand-ins, which become the page's own colours, for light and for dark: matplotlib knows no CSS variables.
INK, SOFT, GRID, GHOST, CARD = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = [f"#0a000{number}" for number in range(7)]
VARIABLES = dict(zip((INK, SOFT, GRID, GHOST, CARD), ("ink", "soft", "grid", "ghost", "card")))
VARIABLES |= {stand_in: f"c{place}" for place, stand_in in enumerate(SERIES)}
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False, "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "axes.formatter.use_mathtext": False,
    "axes.formatter.offset_threshold": 9, "grid.color": GRID, "text.color": INK, "axes.labelcolor": SOFT,
    "axes.edgecolor": SOFT, "xtick.color": INK, "ytick.color": INK, "legend.frameon": False,
}  # fmt: skip


@dataclass(frozen=True)
class Bars:
    """A series of bars, one for each group; `errors` reach below and above the end of each bar."""

    label: str
    colour: int
    values: Sequence[float | None]
    errors: Sequence[tuple[float, float]] | None = None


Chart = Callable[..., Markup | None]


def chart(height: float) -> Callable[[Callable[..., None]], Chart]:
    """Return a decorator: what draws on axes becomes a function from a title and data to an SVG, or None."""

    def decorator(draw: Callable[..., None]) -> Chart:
        @functools.wraps(draw)
        def drawn(title: str, *data: Any, **options: Any) -> Markup | None:
            if importlib.util.find_spec("matplotlib") is None:
                return None
            with _matplotlib(_encodable(title)) as figure:
                axes = figure.add_subplot()
                draw(axes, *_encodable(data), **options)
                figure.set_size_inches(INCHES, options.get("inches", height))
                file = io.StringIO()
                nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
                figure.savefig(file, format="svg", bbox_inches="tight", transparent=True, metadata=nothing)
            return _inline(file.getvalue(), title)

        return drawn

    return decorator


def _encodable(data: Any) -> Any:
    """The data without what UTF-8 does not have: names of files may, and matplotlib's fonts fail on it."""
    if isinstance(data, str):
        return data.encode("utf-8", errors="replace").decode()
    if isinstance(data, Bars):
        return replace(data, label=_encodable(data.label))
    return [_encodable(one) for one in data] if isinstance(data, list | tuple) else data


@contextmanager
def _matplotlib(salt: str) -> Iterator[Any]:
    """An empty figure, without warnings about fonts."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "svg.hashsalt": salt}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield Figure()


def _inline(svg: str, title: str) -> Markup:
    """The SVG element alone, without what only a file of its own needs, in the colours of the page."""
    svg = svg[svg.index("<svg ") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    for stand_in, name in VARIABLES.items():
        body = body.replace(stand_in, f"var(--{name})")
    start = f'<svg {view[0] if view else ""} role="img" aria-label="{escape(title)}" class="chart">'
    return Markup(start + re.sub(r"\n\s*", "\n", body).strip())


def _scaled(axis: Any, values: Sequence[float]) -> None:
    """A logarithmic axis where all values are positive and far apart; numbers without powers of ten where they fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    if min(values) > 0 and max(values) / min(values) >= WIDE:
        getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
        axis.set_minor_locator(LogLocator(subs=()))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))


def short(value: float) -> str:
    """Return the number at a tick: 1.5M, 20k, 0.05, 1e-06."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= unit:
            return f"{value / (1e3 if letter == 'k' else unit):.6g}{letter}"
    return f"{value:.6g}"


@chart(3.2)
def scatter(axes: Any, points: Sequence[tuple[str, float, float, int]], x_title: str, y_title: str) -> None:
    """Draw points.

    Args:
        axes: Of matplotlib.
        points: (name in the legend, x, y, number of the colour); a name that comes again is in the legend once.
        x_title: Under the axis.
        y_title: Beside the axis.
    """
    seen: set[str] = set()
    for label, x, y, colour in points:
        axes.scatter([x], [y], s=45, color=SERIES[colour], edgecolor=CARD, label=None if label in seen else label)
        seen.add(label)
    _scaled(axes.xaxis, [x for _, x, _, _ in points])
    _scaled(axes.yaxis, [y for _, _, y, _ in points])
    axes.margins(0.12)
    axes.set(xlabel=x_title, ylabel=y_title)
    _legend(axes, below=True)


@chart(2.8)
def curve(
    axes: Any, points: Sequence[tuple[float, float]], colour: int, style: str, x_title: str, y_title: str,
    levels: Sequence[tuple[str, float, int]] = (),
) -> None:  # fmt: skip
    """Draw a line.

    Args:
        axes: Of matplotlib.
        points: (x, y); NaN is a gap.
        colour: Its number.
        style: Of matplotlib, such as "o-".
        x_title: Under the axis; "layer" for an axis of whole numbers.
        y_title: Beside the axis.
        levels: (name, y, number of the colour) of lines that go all across.
    """
    axes.plot(*zip(*points), style, color=SERIES[colour], markersize=4)
    for name, value, level in levels:
        axes.axhline(value, color=SERIES[level], linestyle="--", label=name)
    _scaled(axes.yaxis, [y for _, y in [*points, *(level[:2] for level in levels)] if y == y])
    axes.set(xlabel=x_title, ylabel=y_title)
    _layers(axes, x_title)
    _legend(axes)


@chart(2.4)
def columns(axes: Any, before: Sequence[int], after: Sequence[int], y_title: str, colour: int = 1) -> None:
    """Draw a column for each layer, inside the outline of what it was.

    Args:
        axes: Of matplotlib.
        before: A number for each layer.
        after: Likewise; 0 where the layer is gone.
        y_title: Beside the axis.
        colour: Its number.
    """
    places = range(len(before))
    axes.bar(places, before, width=0.84, color=GHOST, label="before")
    axes.bar(places, after, width=0.6, color=SERIES[colour], label="after")
    _scaled(axes.yaxis, [0])
    _layers(axes, "layer")
    axes.set(ylabel=y_title)


@chart(2.6)
def boxes(axes: Any, rows: Sequence[Sequence[float]], y_title: str) -> None:
    """Draw a box for each layer: all (thin), 10 to 90 % (thick), 25 to 75 % (box), the median.

    Args:
        axes: Of matplotlib.
        rows: The seven quantiles of each layer, of `importance.selection.QUANTILES`.
        y_title: Beside the axis.
    """
    layers, quantiles = range(len(rows)), list(zip(*rows))
    least, low, q25, middle, q75, high, most = quantiles
    axes.vlines(layers, least, most, color=SOFT, linewidth=0.8)
    axes.vlines(layers, low, high, color=SERIES[1], linewidth=2)
    spans = [top - bottom for bottom, top in zip(q25, q75)]
    axes.bar(layers, spans, bottom=q25, width=0.6, color=CARD, edgecolor=SERIES[1], zorder=3)
    axes.hlines(middle, [x - 0.3 for x in layers], [x + 0.3 for x in layers], color=INK, zorder=4)
    bottom, top = min(low), max(high)
    _scaled(axes.yaxis, [bottom, max(most)])
    # A few units far away must not press the others flat.
    reach = top - bottom or abs(top) or 1.0
    linear = axes.get_yscale() == "linear"
    lowest, highest = (bottom - reach, top + reach) if linear else (bottom * bottom / top, top * top / bottom)
    axes.set_ylim(max(min(least), lowest), min(max(most), highest))
    _layers(axes, "layer" if len(rows) > 1 else "")
    axes.set(ylabel=y_title)


@chart(3.0)
def bars(axes: Any, groups: Sequence[str], series: Sequence[Bars], x_title: str, inches: float = 3.0) -> None:
    """Draw horizontal bars in groups, the first group on top, with the value behind each.

    Args:
        axes: Of matplotlib.
        groups: Their names.
        series: A bar in each group.
        x_title: Under the axis.
        inches: The height, of which `chart` sets the figure's.
    """
    height = 0.8 / len(series)
    for place, own in enumerate(series):
        known = [(group, value) for group, value in enumerate(own.values) if value is not None]
        ys = [group + (place - (len(series) - 1) / 2) * height for group, _ in known]
        errors = own.errors and list(zip(*(own.errors[group] for group, _ in known)))
        drawn = axes.barh(
            ys, [value for _, value in known], height * 0.9, color=SERIES[own.colour], label=own.label, xerr=errors,
            ecolor=INK,
        )  # fmt: skip
        axes.bar_label(drawn, [number(value) for _, value in known], padding=4, fontsize=8)
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")
    _scaled(axes.xaxis, [0])
    axes.set(xlabel=x_title)
    _legend(axes, below=True)


def _layers(axes: Any, title: str) -> None:
    """An axis of whole numbers, or of none where there is one thing only."""
    axes.set_xlabel(title)
    if title == "layer":
        axes.xaxis.get_major_locator().set_params(integer=True)
    elif not title:
        axes.set_xticks([])
    if title in ("", "layer"):
        axes.grid(visible=False, axis="x")


def _legend(axes: Any, below: bool = False) -> None:
    if axes.get_legend_handles_labels()[1]:
        place = {"loc": "upper left", "bbox_to_anchor": (0, -0.22)} if below else {}
        axes.legend(**place, fontsize=8)
