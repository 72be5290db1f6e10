"""From scores and widths to the units that stay."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llm_pruner.model.axes import HEADS, KV_HEADS, Layers, Widths, heads_per_group, is_grouped
from llm_pruner.model.groups import Group, group_name, units_after, units_of

if TYPE_CHECKING:
    import torch

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def scored_groups(groups: Iterable[Group], before: Widths, after: Layers) -> list[Group]:
    """Return the groups whose units have to be ranked to get from `before` to `after`, in the units that are ranked.

    Args:
        groups: All groups.
        before: The widths of every layer.
        after: The widths of every layer afterwards.
    """
    return [group for group in units_of(groups) if _ranked(group, before, after)]


def _ranked(group: Group, before: Widths, after: Layers) -> bool:
    layer = after[group.layer or 0]
    if group.axis == HEADS and is_grouped(before):
        return heads_per_group(layer) != heads_per_group(before)
    if group.axis == KV_HEADS and not is_grouped(before):
        # they go with their query head
        return False
    return layer[group.axis] != group.units


def quantiles(scores: "Mapping[str, torch.Tensor]", groups: Iterable[Group]) -> dict[str, list[list[float]]]:
    """Tell how scores are spread: {name of the width: QUANTILES of its units' scores, a list per layer}.

    Args:
        scores: By group, of all or some of `groups`.
        groups: Of the model.
    """
    import torch

    found: dict[str, list[list[float]]] = {}
    for group in groups:
        if group.name in scores:
            values = unit_scores(scores[group.name].double(), group.units)
            levels = values.quantile(torch.tensor(QUANTILES, dtype=values.dtype, device=values.device))
            found.setdefault(group.axis.field, []).append([float(f"{value:.6g}") for value in levels.tolist()])
    return found


def unit_scores(scores: "torch.Tensor", units: int) -> "torch.Tensor":
    """Add up the scores of the parts of each unit: of a head's columns, or of a kv group's heads.

    Args:
        scores: Float tensor [units · parts].
        units: How many units there are.

    Returns:
        Float tensor [units].
    """
    return scores.view(units, -1).sum(1)


def choose(
    groups: Iterable[Group], scores: "Mapping[str, torch.Tensor]", before: Widths, after: Layers
) -> dict[str, list[int]]:
    """Choose the units that stay: those with the highest scores, at equal scores the first ones.

    Query heads stay in equal number in every kv group that stays, so that each finds its keys again.

    Args:
        groups: All groups.
        scores: {group name: scores of its units or of parts of them}, of the groups that are ranked.
        before: The widths of every layer.
        after: The widths of every layer afterwards.

    Returns:
        {group name: ascending indices of the units that stay}.
    """
    kept: dict[str, list[int]] = {}
    for group in groups:
        if group.axis == HEADS:
            continue
        count = units_after(group, after)
        if group.axis == KV_HEADS:
            heads = group_name(HEADS, group.layer)
            if is_grouped(before):
                kept[group.name] = highest(scores.get(group.name), group.units, count)
                per_group = heads_per_group(after[group.own_layer])
                kept[heads] = _heads_in(kept[group.name], scores.get(heads), before, per_group)
            else:
                kept[heads] = kept[group.name] = highest(scores.get(heads), group.units, count)
        else:
            kept[group.name] = highest(scores.get(group.name), group.units, count)
    return kept


def _heads_in(kv_heads: list[int], scores, before: Widths, per_group: int) -> list[int]:
    size, heads = heads_per_group(before), []
    if scores is not None:
        scores = unit_scores(scores, before[HEADS])
    for kv in kv_heads:
        own = None if scores is None else scores[kv * size : (kv + 1) * size]
        heads += [kv * size + head for head in highest(own, size, per_group)]
    return heads


def highest(scores: "torch.Tensor | None", units: int, count: int) -> list[int]:
    """Return the units with the highest scores, ascending; at equal scores the first ones.

    Args:
        scores: Float tensor [units · parts]; None where no unit goes.
        units: How many units there are.
        count: How many stay.
    """
    if count == units:
        return list(range(units))
    assert scores is not None, "units that go have scores"
    return unit_scores(scores, units).argsort(descending=True, stable=True)[:count].sort().values.tolist()
