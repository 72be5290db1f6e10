"""Widths per layer, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass

from llm_pruner.output.page.columns import columns
from llm_pruner.output.page.elements import figure, figures, legend, section
from llm_pruner.output.page.markup import Markup, tag
from llm_pruner.output.page.models import Model, dense_of, is_pruning
from llm_pruner.output.page.wording import percent

INSIDE = ("num_attention_heads", "num_key_value_heads", "intermediate_size")  # what a layer may have of its own


@dataclass(frozen=True)
class Change:
    """before, after: {name: width of every layer}. kept: the layers of `before` that those of `after` are."""

    label: str
    before: dict[str, list[int]]
    after: dict[str, list[int]]
    kept: list[int]
    colour: int = 1


def widths(models: Sequence[Model], steps: Sequence[dict]) -> Markup | None:
    """Of each pruning; without one, of the evaluated models beside the dense one."""
    changes = [_of_step(step) for step in steps if is_pruning(step)] or _of_evaluation(models)
    content = [part for change in changes for part in _drawn(change, heading=len(changes) > 1 or not steps)]
    return section("widths", "Widths per layer", content) if content else None


def _of_step(step: dict) -> Change:
    number = step["layers"]["before"]
    before, after = (_layers(step["widths"][side], step["layers"][side]) for side in ("before", "after"))
    return Change(f"{step['model']}, pruned", before, after, step["layers"].get("kept") or list(range(number)))


def _of_evaluation(models: Sequence[Model]) -> list[Change]:
    """One for all models of the same widths. Which layers a model with fewer of them lost is not known."""
    dense = dense_of(models)
    if dense is None or not dense.layers:
        return []
    alike: dict[str, list[Model]] = {}
    for model in models:
        if model.layers and (model.widths, model.layers) != (dense.widths, dense.layers):
            alike.setdefault(repr((model.widths, model.layers)), []).append(model)
    changes = []
    for model, *others in alike.values():
        label = ", ".join(each.label for each in (model, *others))
        if model.layers != dense.layers:
            label += f": {model.layers} layers, dense has {dense.layers}"
        before, after = (_layers(each.widths, model.layers) for each in (dense, model))
        changes.append(Change(label, before, after, list(range(model.layers)), model.colour))
    return changes


def _layers(found: dict, number: int) -> dict[str, list[int]]:
    every = {name: width if isinstance(width, list) else [width] * number for name, width in found.items()}
    return {name: width for name, width in every.items() if len(width) == number}


def _drawn(change: Change, heading: bool) -> list[Markup]:
    """A chart for each width that changes inside of layers, and words for the others."""
    drawn, same = [], []
    for name in (name for name in change.before if name in change.after):
        old, after = change.before[name], change.after[name]
        new = [0] * len(old)
        for place, width in zip(change.kept, after):
            new[place] = width
        alike = len(set(old)) == len(set(after)) == 1
        if alike and (name not in INSIDE or old[0] == after[0]):
            same.append(f"{name} {old[0]:,}" if old[0] == after[0] else f"{name} {old[0]:,} → {after[0]:,}")
        elif old == new:
            same.append(f"{name} as before")
        else:
            title, share = f"{name} per layer, {change.label}", percent(1 - sum(new) / max(sum(old), 1))
            drawn.append(figure(columns(title, old, new, name, change.colour), f"{name}: {share} removed"))
    gone = sorted(set(range(max(map(len, change.before.values()), default=0))) - set(change.kept))
    return [
        *([tag("h3", change.label)] if heading else []),
        *([legend([("ghost", "before"), (f"c{change.colour}", "after")]), figures(drawn)] if drawn else []),
        *([tag("p", f"Layers removed whole: {', '.join(map(str, gone))}.")] if gone else []),
        *([tag("p", "In every layer: ", "; ".join(same))] if same else []),
    ]
