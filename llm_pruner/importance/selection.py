"""From scores and widths to the units that stay."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from llm_pruner.errors import PlanError
from llm_pruner.model.families import Layers, Widths, widths_of
from llm_pruner.model.groups import FIELD, HEADS, KV_HEADS, Group, units_of
from llm_pruner.shape.plan import Plan, units_after

if TYPE_CHECKING:
    import torch

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def scored_groups(groups: Iterable[Group], before: Widths, after: Layers) -> list[Group]:
    """The groups whose units have to be ranked to get from `before` to `after`, in the units that are ranked."""
    return [group for group in units_of(groups) if _ranked(group, before, after)]


def _ranked(group: Group, before: Widths, after: Layers) -> bool:
    layer = after[group.layer or 0]
    if group.kind == HEADS and before.grouped:
        return layer.heads_per_group != before.heads_per_group
    if group.kind == KV_HEADS and not before.grouped:
        return False  # they go with their query head
    return getattr(layer, FIELD[group.kind]) != group.units


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
            found.setdefault(FIELD[group.kind], []).append([float(f"{value:.6g}") for value in levels.tolist()])
    return found


def unit_scores(scores: "torch.Tensor", units: int) -> "torch.Tensor":
    """One score per unit, from scores of its parts (a head's columns, a kv group's heads), which add up."""
    return scores.view(units, -1).sum(1)


def choose(
    groups: Iterable[Group], scores: "Mapping[str, torch.Tensor]", before: Widths, after: Layers
) -> dict[str, list[int]]:
    """{group name: indices of the units that stay}: the highest scores, at equal scores the first.

    Query heads stay in equal number in every kv group that stays, so each finds its keys again.
    """
    kept: dict[str, list[int]] = {}
    for group in groups:
        if group.kind == HEADS:
            continue
        count = units_after(group, after)
        if group.kind == KV_HEADS:
            heads = f"layers.{group.layer}.{HEADS}"
            if before.grouped:
                kept[group.name] = _highest(scores.get(group.name), group.units, count)
                per_group = after[group.layer].heads_per_group
                kept[heads] = _heads_in(kept[group.name], scores.get(heads), before, per_group)
            else:
                kept[heads] = kept[group.name] = _highest(scores.get(heads), group.units, count)
        else:
            kept[group.name] = _highest(scores.get(group.name), group.units, count)
    return kept


def _heads_in(kv_heads: list[int], scores, before: Widths, per_group: int) -> list[int]:
    size, heads = before.heads_per_group, []
    if scores is not None:
        scores = unit_scores(scores, before.num_attention_heads)
    for kv in kv_heads:
        own = None if scores is None else scores[kv * size : (kv + 1) * size]
        heads += [kv * size + head for head in _highest(own, size, per_group)]
    return heads


def _highest(scores, units: int, count: int) -> list[int]:
    if count == units:
        return list(range(units))
    return unit_scores(scores, units).argsort(descending=True, stable=True)[:count].sort().values.tolist()


def check_replay(plan: Plan, config, groups: Iterable[Group]) -> None:
    """PlanError unless `plan` was made for a model of this shape and names units that such a model has."""
    widths = widths_of(config)
    if (plan.model_type, plan.num_hidden_layers) != (config.model_type, config.num_hidden_layers):
        raise PlanError(
            f"the plan is for {plan.model_type} with {plan.num_hidden_layers} layers, "
            f"this model is {config.model_type} with {config.num_hidden_layers}"
        )
    for name, width in plan.before.asdict().items():
        if getattr(widths, name) != width:
            raise PlanError(f"the plan is for {name}={width}, this model has {getattr(widths, name)}")
    groups = {group.name: group for group in groups}
    if set(plan.kept) != set(groups):
        raise PlanError(f"the plan's groups are not this model's: {sorted(set(plan.kept) ^ set(groups))[:3]}")
    if len({(layer.hidden_size, layer.head_dim) for layer in plan.after}) > 1:
        raise PlanError("the plan's layers differ in hidden_size or head_dim, which all have in common")
    for name, kept in plan.kept.items():
        count = units_after(groups[name], plan.after)
        legal = all(type(unit) is int and 0 <= unit < groups[name].units for unit in kept)
        if not legal or kept != sorted(set(kept)) or len(kept) != count:
            raise PlanError(f"the plan's {name} is not {count} ascending units of {groups[name].units}")
    size = plan.before.heads_per_group
    for name, group in groups.items():
        if group.kind == HEADS:
            kv_heads, smaller = plan.kept[f"layers.{group.layer}.{KV_HEADS}"], plan.after[group.layer].heads_per_group
            if [head // size for head in plan.kept[name]] != [kv for kv in kv_heads for _ in range(smaller)]:
                raise PlanError(f"the plan's {name} does not keep {smaller} query heads in each kv head it keeps")
