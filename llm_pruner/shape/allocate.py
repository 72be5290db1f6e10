"""Adaptive structures: scores of all layers in one list decide how many units each layer keeps.

FLAP's AL-AM and AL-MM (An et al., AAAI 2024, https://arxiv.org/abs/2312.11983), for any criterion.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_pruner.errors import PlanError
from llm_pruner.model.families import Layers, Widths
from llm_pruner.model.groups import HEADS, KV_HEADS, MLP, Group, units_of
from llm_pruner.shape.budget import TOLERANCE, Ledger

if TYPE_CHECKING:
    import torch


def adaptive_groups(groups: Iterable[Group], before: Widths, kinds: Iterable[str]) -> list[Group]:
    """The groups whose units compete: neurons, and heads, for grouped queries a kv group with all its heads."""
    heads = KV_HEADS if before.grouped else HEADS
    wanted = {heads if kind in (HEADS, KV_HEADS) else kind for kind in kinds}
    return [group for group in units_of(groups) if group.kind in wanted]


def standardised(scores: "torch.Tensor", units: int) -> "torch.Tensor":
    """(score − mean) / std over the layer's scores, averaged over the parts of a unit where they are finer.

    float32 [units].

    Scores that are all alike are all 0.
    """
    if len(scores) > 1 and not scores.std().isfinite():  # their squares are too large for float32
        scores = scores.double()
    std = scores.std() if len(scores) > 1 else scores.new_zeros(())
    centred = scores - scores.mean()
    return (centred / std if std > 0 else centred * 0).view(units, -1).mean(1).float()


def allocate(
    ledger: Ledger,
    groups: Iterable[Group],
    scores: "Mapping[str, torch.Tensor]",
    share: float,
    structure: str,
    remove_heads: int = 0,
    exact: bool = False,
) -> Layers:
    """The widths of every layer when `share` of the attention and MLP parameters goes.

    groups, scores: of `adaptive_groups`. AL-AM: one list of all units, the highest standardised scores stay up to
    where their cost, in parameters, is nearest to what is left; `exact`: the last neurons on either side of that
    make up for what a large unit leaves. AL-MM: one list for the heads, of which `remove_heads` go, one for the
    neurons, which fill the rest. The best unit of every group stays. PlanError when a share cannot be met.
    """
    import torch

    before = ledger.before
    groups = list(groups)
    per_group = before.heads_per_group if before.grouped else 1
    costs = {
        MLP: ledger.cost(before, intermediate_size=1),
        **dict.fromkeys((HEADS, KV_HEADS), ledger.cost(before, num_attention_heads=per_group, num_key_value_heads=1)),
    }
    values, cost, owner = [], [], []
    for number, group in enumerate(groups):
        unit = standardised(scores[group.name], group.units)
        unit[unit.argmax()] = math.inf
        values.append(unit)
        cost.append(torch.full((group.units,), costs[group.kind], dtype=torch.float64))
        owner.append(torch.full((group.units,), number))
    values, cost, owner = torch.cat(values), torch.cat(cost), torch.cat(owner)
    goes = share * ledger.decoder(ledger.all_layers(before))
    order = values.argsort(descending=True, stable=True)
    is_head = torch.tensor([group.kind != MLP for group in groups])[owner[order]]
    heads, neurons = order[is_head], order[~is_head]
    if structure == "AL-AM":
        left = cost[order].cumsum(0)
        length = max(int((left - (cost.sum() - goes)).abs().argmin()) + 1, len(groups))
        kept_heads, kept_neurons = int(is_head[:length].sum()), int((~is_head[:length]).sum())
        if exact and len(neurons):
            missing = float(cost.sum() - goes - left[length - 1]) / costs[MLP]
            best = int((values[neurons] == math.inf).sum())
            kept_neurons = min(max(kept_neurons + round(missing), best), len(neurons))
    else:
        fewer_heads = remove_heads // per_group
        if remove_heads and not fewer_heads:
            raise PlanError(f"remove_heads {remove_heads} is not a whole kv group, which has {per_group} query heads")
        fewer_neurons = math.floor(max(0.0, goes - fewer_heads * costs[HEADS]) / costs[MLP] + 1e-6)
        for name, there, fewer in (("heads", heads, fewer_heads), ("neurons", neurons, fewer_neurons)):
            spare = int((values[there] < math.inf).sum())
            if fewer > spare:
                raise PlanError(
                    f"{fewer} units of {name} would go and {spare} can; ask for less or for other --remove_heads"
                )
        kept_heads, kept_neurons = len(heads) - fewer_heads, len(neurons) - fewer_neurons
    kept = torch.cat([heads[:kept_heads], neurons[:kept_neurons]])
    counts = torch.bincount(owner[kept], minlength=len(groups)).tolist()
    layers = [before] * ledger.num_layers
    for group, count in zip(groups, counts, strict=True):
        if group.kind == MLP:
            fewer = {"intermediate_size": count}
        else:
            fewer = {"num_attention_heads": count * per_group, "num_key_value_heads": count}
        layers[group.layer] = replace(layers[group.layer], **fewer)
    reached = 1 - ledger.decoder(tuple(layers)) / ledger.decoder(ledger.all_layers(before))
    coarse = 0 if exact else max(costs.values()) / ledger.decoder(ledger.all_layers(before))
    if abs(reached - share) > TOLERANCE + coarse:
        raise PlanError(
            f"{share:.4f} of the attention and MLP parameters should go; the nearest for {structure} is {reached:.4f}"
        )
    return tuple(layers)


def uniform(ledger: Ledger, layers: Layers, legal: Callable[[Widths], bool]) -> Layers:
    """One width for all layers: the mean number of heads, rounded to a `legal` one, and neurons to as many parameters
    as before. PlanError when no number of heads is legal and comes near."""
    before, number, goal = ledger.before, len(layers), ledger.decoder(layers)
    mean = sum(layer.num_key_value_heads for layer in layers) / number
    for kv_heads in sorted(range(1, before.num_key_value_heads + 1), key=lambda kv_heads: abs(kv_heads - mean)):
        heads = kv_heads * before.heads_per_group
        shape = replace(before, num_key_value_heads=kv_heads, num_attention_heads=heads)
        excess = ledger.decoder(ledger.all_layers(shape)) - goal
        neurons = before.intermediate_size - round(excess / number / ledger.cost(before, intermediate_size=1))
        shape = replace(shape, intermediate_size=min(max(1, neurons), before.intermediate_size))
        miss = abs(ledger.decoder(ledger.all_layers(shape)) - goal)
        if miss <= TOLERANCE * ledger.decoder(ledger.all_layers(before)) and legal(shape):
            return ledger.all_layers(shape)
    raise PlanError("no stock class holds one width for all layers with as many parameters; leave --uniform out")
