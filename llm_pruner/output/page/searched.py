"""The best method's own: the shapes that were compared, and what the rebuild came to."""

from collections.abc import Sequence

from llm_pruner.output.page.charts import Line, Point, curve, scatter
from llm_pruner.output.page.columns import Bar, bars
from llm_pruner.output.page.elements import (
    figure,
    figures,
    folded,
    legend,
    section,
    table,
)
from llm_pruner.output.page.markup import Markup
from llm_pruner.output.page.wording import UNKNOWN, known, number

KINDS = ("every layer, full hidden size", "fewer layers", "smaller hidden size", "lm_head of its own")
SHOWN = 12  # rows of the table; the others are folded away


def rebuilt(steps: Sequence[dict]) -> Markup | None:
    content = []
    for step in steps:
        if found := step.get("rebuild"):
            content += [figures(_charts(step, found)), *_shapes(found)]
    return section("rebuild", "Search and rebuild", *content) if content else None


def _charts(step: dict, found: dict) -> list[Markup]:
    drawn, tried = [], [each for each in found.get("search") or () if None not in (each["kl"], each["expected"])]
    if len(tried) > 1:
        chosen, hidden = _chosen(found), max(_width(each, "hidden_size") for each in tried)
        points, kinds = [], {}
        for each in tried:
            kind = _kind(each, hidden)
            kinds[kind] = None
            label = "chosen" if chosen and _shape(each) == _shape(chosen) else ""
            note = f"{_said(each)}: KL {number(each['kl'])}, second-order cost {number(each['expected'])}"
            points.append(Point(label, each["expected"], each["kl"], kind + 1, note))
        caption = f"{len(tried)} shapes of the size that was asked for, rebuilt on a part of the text. Lower is better."
        key = legend([(f"c{kind + 1}", KINDS[kind]) for kind in sorted(kinds)]) if len(kinds) > 1 else None
        title = "KL of the measured shapes against what was expected of them"
        drawn.append(figure(scatter(title, points, "second-order cost", "KL(dense ‖ pruned)"), caption, key))
    errors = found.get("stream_errors") or []
    if len(errors) > 1 and None not in errors:
        points = list(enumerate(errors))
        caption = "Relative squared error of the residual stream behind each layer, on held-out text."
        title = "Error of the residual stream per layer"
        drawn.append(figure(curve(title, [Line(points, 1, dots=True)], "layer", "relative error"), caption))
    values = {"rebuilt": found.get("kl"), **{f"plain {name}": kl for name, kl in (found.get("kl_plain") or {}).items()}}
    if any(value is not None for value in values.values()):
        rows = [
            (name, [Bar(name, value, number(value), 1 if name == "rebuilt" else 0)]) for name, value in values.items()
        ]
        caption = "KL(dense ‖ pruned) per token at this shape, on held-out text. The lower one is what was kept."
        drawn.append(figure(bars("KL of the rebuilt model beside the plain method", rows), caption))
    return drawn


def _shapes(found: dict) -> list[Markup]:
    """Every shape that was measured, on a part of the text and, the best ones, on all of it."""
    tried, finals = found.get("search") or [], {_shape(each): each["kl"] for each in found.get("finals") or ()}
    own = [each for each in found.get("finals") or () if _shape(each) not in {_shape(one) for one in tried}]
    tried = sorted([*own, *tried], key=lambda each: (_rank(finals.get(_shape(each))), _rank(each["kl"])))
    if not tried:
        return []
    head = ["shape", "hidden", "heads", "kv heads", "intermediate", "layers", "cost", "KL, part", "KL, all"]
    head = head if finals else head[:-1]
    rows = []
    for each in tried:
        layers = "all" if each["layers"] is None else str(len(each["layers"]))
        widths = [
            _span(each, name)
            for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        ]
        kl = UNKNOWN if any(each is one for one in own) else number(each["kl"])
        last = number(finals[_shape(each)]) if _shape(each) in finals else UNKNOWN
        kind = (
            "per layer" if isinstance(each["widths"], list) else "lm_head of its own" if each["untied"] else "uniform"
        )
        rows.append([kind, *widths, layers, known(each["expected"]), kl, *([last] if finals else [])])
    drawn = [table("Measured shapes", head, rows[:SHOWN], strong=_place(tried, _chosen(found)))]
    if len(rows) > SHOWN:
        drawn.append(folded(f"{len(rows) - SHOWN} more shapes", table("More measured shapes", head, rows[SHOWN:])))
    return drawn


def _rank(kl: float | None) -> float:
    return float("inf") if kl is None else kl


def _chosen(found: dict) -> dict | None:
    return next(iter(found.get("finals") or found.get("search") or ()), None)


def _place(tried: Sequence[dict], chosen: dict | None) -> int | None:
    return next((place for place, each in enumerate(tried) if chosen and _shape(each) == _shape(chosen)), None)


def _shape(each: dict) -> str:
    """What tells a shape from others."""
    return repr((each["widths"], each["layers"], each["untied"]))


def _kind(each: dict, hidden: int) -> int:
    if each["untied"]:
        return 3
    return 1 if each["layers"] is not None else 2 if _width(each, "hidden_size") < hidden else 0


def _width(each: dict, name: str) -> int:
    widths = each["widths"]
    return max(layer[name] for layer in widths) if isinstance(widths, list) else widths[name]


def _span(each: dict, name: str) -> str:
    widths = each["widths"] if isinstance(each["widths"], list) else [each["widths"]]
    low, high = (pick(layer[name] for layer in widths) for pick in (min, max))
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _said(each: dict) -> str:
    layers = "" if each["layers"] is None else f", {len(each['layers'])} layers"
    return (
        f"hidden {_span(each, 'hidden_size')}, {_span(each, 'num_attention_heads')} heads, "
        f"{_span(each, 'num_key_value_heads')} kv heads, {_span(each, 'intermediate_size')} neurons{layers}"
    )
