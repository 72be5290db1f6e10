"""HTML and SVG from Python: every string is escaped unless it is markup already, so no name can become a tag."""

from html import escape

VOID = ("meta", "br")
SHAPES = ("rect", "line", "path", "circle")


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children, **attributes) -> Markup:
    """`<name attributes>children</name>`. Children are markup, text, numbers, lists of those, or None for nothing.

    An attribute that is None is left out; `class_` and `text_anchor` are written `class` and `text-anchor`.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    inside = join(children)
    if name in SHAPES and not inside:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{inside}</{name}>")


def join(children) -> Markup:
    """Children one after the other, escaped where they are not markup."""
    parts = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(join(child))
        elif isinstance(child, Markup):
            parts.append(child)
        elif child is not None:
            parts.append(escape(_plain(child)))
    return Markup("".join(parts))


def _plain(value) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
