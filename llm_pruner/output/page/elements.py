"""The parts that sections are made of: tables, figures, legends, facts."""

import json
from collections.abc import Iterable, Mapping, Sequence

from llm_pruner.output.page.markup import Markup, join, tag
from llm_pruner.output.page.wording import NOT_FINITE, number, shortened


def section(name: str, title: str, *content) -> Markup:
    return tag("section", tag("h2", title), *content, id=name)


def figure(drawing: Markup, caption: object = None, key: Markup | None = None) -> Markup:
    return tag("figure", key, drawing, tag("figcaption", caption) if caption else None)


def figures(drawn: Sequence[Markup]) -> Markup | None:
    """Side by side where there is room."""
    return tag("div", *drawn, class_="grid") if drawn else None


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """entries: (class of the swatch, what it stands for)."""
    return tag("ul", [tag("li", named(text, own)) for own, text in entries], class_="legend")


def named(name: str, colour: str | None = None) -> Markup:
    """A name, shortened where it is long, behind a swatch of its colour."""
    return tag("span", tag("span", class_=f"swatch {colour}") if colour else None, shortened(name, 34), title=name)


def noted(value: object, note: object | None) -> Markup:
    """A note in small letters below a value."""
    return join([value, tag("small", note) if note else None])


def table(
    title: str, head: Sequence[str], rows: Iterable[Sequence], words: int = 1, strong: int | None = None
) -> Markup:
    """The first `words` columns are text, the others numbers. strong: the row to point out. Scrolls if it is wide."""

    def cells(name: str, row: Sequence) -> list[Markup]:
        return [tag(name, cell, class_="number" if place >= words else None) for place, cell in enumerate(row)]

    top = tag(
        "thead",
        tag("tr", [tag("th", c, scope="col", class_="number" if i >= words else None) for i, c in enumerate(head)]),
    )
    body = []
    for place, (first, *rest) in enumerate(rows):
        inside = [tag("th", first, scope="row"), *cells("td", ["", *rest])[1:]]
        body.append(tag("tr", inside, class_="strong" if place == strong else None))
    inside = tag("table", tag("caption", title), top, tag("tbody", body))
    return tag("div", inside, class_="scroll", tabindex=0, role="region", aria_label=title)


def facts(entries: Mapping[str, object]) -> Markup:
    """Names and values."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", said(value))) for name, value in entries.items()])


def folded(title: str, content: Markup) -> Markup:
    return tag("details", tag("summary", title), content)


def said(value) -> str | Markup:
    """Any value of a report, as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return NOT_FINITE
    if isinstance(value, float) and 1e-4 <= abs(value) < 1e3:
        return f"{value:.4g}"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple) and not any(isinstance(each, dict | list) for each in value):
        return ", ".join(map(said, value)) or "none"
    return json.dumps(value)
