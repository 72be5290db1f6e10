"""Adaptive structures: scores of all layers in one list decide how many units each layer keeps.

FLAP's AL-AM and AL-MM (An et al., AAAI 2024, https://arxiv.org/abs/2312.11983), for any criterion.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import (
    ATTENTION,
    HEADS,
    KV_HEADS,
    LAYER,
    MLP,
    Axis,
    Layers,
    Widths,
    heads_per_group,
    is_grouped,
    with_heads,
)
from llm_pruner.model.groups import Group, units_of
from llm_pruner.shape.budget import TOLERANCE
from llm_pruner.shape.counter import ParameterCounter

if TYPE_CHECKING:
    import torch


def adaptive_groups(groups: Iterable[Group], before: Widths, axes: Iterable[Axis]) -> list[Group]:
    """Return the groups whose units compete: neurons and heads; of grouped queries, kv groups with all their heads.

    Args:
        groups: All groups.
        before: The widths of every layer.
        axes: The axes that shrink.
    """
    heads = KV_HEADS if is_grouped(before) else HEADS
    wanted = {heads if axis in ATTENTION else axis for axis in axes}
    return [group for group in units_of(groups) if group.axis in wanted]


def standardised(scores: "torch.Tensor", units: int) -> "torch.Tensor":
    """Standardise a layer's scores: (score − mean) / std, averaged over the parts of a unit where they are finer.

    Scores that are all alike are all 0.

    Args:
        scores: Float tensor [units · parts].
        units: How many units there are.

    Returns:
        float32 [units].
    """
    # their squares are too large for float32
    if len(scores) > 1 and not scores.std().isfinite():
        scores = scores.double()
    std = scores.std() if len(scores) > 1 else scores.new_zeros(())
    centred = scores - scores.mean()
    return (centred / std if std > 0 else centred * 0).view(units, -1).mean(1).float()


def allocate(
    counter: ParameterCounter,
    groups: Iterable[Group],
    scores: "Mapping[str, torch.Tensor]",
    share: float,
    structure: str,
    remove_heads: int = 0,
    exact: bool = False,
) -> Layers:
    """Return the widths of every layer when `share` of the attention and MLP parameters goes.

    AL-AM: one list of all units, of which the highest standardised scores stay, up to where their cost, in parameters,
    is nearest to what is left. AL-MM: one list for the heads, of which `remove_heads` go, and one for the neurons,
    which fill the rest. The best unit of every group stays.

    Args:
        counter: Of the model.
        groups: Of `adaptive_groups`.
        scores: {group name: scores of its units}.
        share: What goes of the attention and MLP parameters.
        structure: AL-AM or AL-MM.
        remove_heads: How many query heads AL-MM removes.
        exact: Whether, in AL-AM, neurons at the limit fill the rest of the budget that a large unit leaves.

    Raises:
        PlanError: The share cannot be met.
    """
    groups, before = list(groups), counter.before
    per_group = heads_per_group(before) if is_grouped(before) else 1
    costs = {axis: counter.cost(before, {axis: 1}) for axis in before.prunable if axis.scope == LAYER}
    costs |= dict.fromkeys(ATTENTION, counter.cost(before, {HEADS: per_group, KV_HEADS: 1}))
    ranked = _Ranking(groups, scores, costs)
    goes = share * counter.decoder(counter.full)
    if structure == "AL-AM":
        heads, neurons = ranked.up_to_cost(goes, exact)
    else:
        heads, neurons = ranked.by_numbers(goes, remove_heads, per_group)
    layers = [before] * counter.num_layers
    for group, count in zip(groups, ranked.counts(heads, neurons), strict=True):
        own = layers[group.own_layer]
        attention = group.axis in ATTENTION
        layers[group.own_layer] = with_heads(own, count, per_group) if attention else own.but({group.axis: count})
    reached = 1 - counter.decoder(tuple(layers)) / counter.decoder(counter.full)
    coarse = 0 if exact else max(costs.values()) / counter.decoder(counter.full)
    if abs(reached - share) > TOLERANCE + coarse:
        raise PlanError(
            f"{share:.4f} of the attention and MLP parameters should go; the nearest for {structure} is {reached:.4f}"
        )
    return tuple(layers)


class _Ranking:
    """All units in one list, the highest standardised scores first, and the best unit of every group before all."""

    def __init__(self, groups: "list[Group]", scores: "Mapping[str, torch.Tensor]", costs: Mapping[Axis, float]):
        import torch

        self.groups, self.costs = groups, costs
        values, cost, owner = [], [], []
        for number, group in enumerate(groups):
            unit = standardised(scores[group.name], group.units)
            unit[unit.argmax()] = math.inf
            values.append(unit)
            cost.append(torch.full((group.units,), costs[group.axis], dtype=torch.float64))
            owner.append(torch.full((group.units,), number))
        self.values, self.cost, self.owner = torch.cat(values), torch.cat(cost), torch.cat(owner)
        self.order = self.values.argsort(descending=True, stable=True)
        self.is_head = torch.tensor([group.axis != MLP for group in groups])[self.owner[self.order]]
        self.heads, self.neurons = self.order[self.is_head], self.order[~self.is_head]

    def up_to_cost(self, goes: float, exact: bool) -> tuple[int, int]:
        """Return how many heads and neurons stay when as much as `goes` is cut off the end of the list."""
        left, stays = self.cost[self.order].cumsum(0), self.cost.sum() - goes
        length = max(int((left - stays).abs().argmin()) + 1, len(self.groups))
        heads, neurons = int(self.is_head[:length].sum()), int((~self.is_head[:length]).sum())
        if exact and len(self.neurons):
            missing = float(stays - left[length - 1]) / self.costs[MLP]
            best = int((self.values[self.neurons] == math.inf).sum())
            neurons = min(max(neurons + round(missing), best), len(self.neurons))
        return heads, neurons

    def by_numbers(self, goes: float, remove_heads: int, per_group: int) -> tuple[int, int]:
        """Return how many heads and neurons stay when `remove_heads` go, and neurons for the rest of `goes`."""
        fewer_heads = remove_heads // per_group
        if remove_heads and not fewer_heads:
            raise PlanError(f"remove_heads {remove_heads} is not a whole kv group, which has {per_group} query heads")
        fewer_neurons = math.floor(max(0.0, goes - fewer_heads * self.costs[HEADS]) / self.costs[MLP] + 1e-6)
        for name, there, fewer in (("heads", self.heads, fewer_heads), ("neurons", self.neurons, fewer_neurons)):
            spare = int((self.values[there] < math.inf).sum())
            if fewer > spare:
                raise PlanError(
                    f"{fewer} units of {name} would go and {spare} can; ask for less or for other `remove_heads`"
                )
        return len(self.heads) - fewer_heads, len(self.neurons) - fewer_neurons

    def counts(self, heads: int, neurons: int) -> list[int]:
        """Return how many units each group keeps."""
        import torch

        kept = torch.cat([self.heads[:heads], self.neurons[:neurons]])
        return torch.bincount(self.owner[kept], minlength=len(self.groups)).tolist()


def uniform(counter: ParameterCounter, layers: Layers, legal: Callable[[Widths], bool]) -> Layers:
    """Return one width for all layers that comes near to layers of different widths.

    The mean number of heads is rounded to a legal one, and neurons fill up to as many parameters as before.

    Args:
        counter: Of the model.
        layers: The widths of every layer.
        legal: Returns whether a class holds a width.

    Returns:
        The widths of every layer, all alike.

    Raises:
        PlanError: No number of heads is legal and comes near.
    """
    before, number, goal = counter.before, len(layers), counter.decoder(layers)
    mean = sum(layer[KV_HEADS] for layer in layers) / number
    for kv_heads in sorted(range(1, before[KV_HEADS] + 1), key=lambda kv_heads: abs(kv_heads - mean)):
        shape = with_heads(before, kv_heads, heads_per_group(before))
        excess = counter.decoder(counter.everywhere(shape)) - goal
        neurons = before[MLP] - round(excess / number / counter.cost(before, {MLP: 1}))
        shape = shape.but({MLP: min(max(1, neurons), before[MLP])})
        miss = abs(counter.decoder(counter.everywhere(shape)) - goal)
        if miss <= TOLERANCE * counter.decoder(counter.full) and legal(shape):
            return counter.everywhere(shape)
    raise PlanError("no stock class holds one width for all layers with as many parameters; leave `uniform` out")
