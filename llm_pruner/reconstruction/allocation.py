"""Widths of its own for every layer: layers are not alike.

What units cost is known from the second order (costs.py), relative to the energy of each layer's stream. How much of
that the logits notice differs from layer to layer, so it is measured: one layer at a time at one width, in nats. One
price per parameter for all layers then gives the widths of least cost; FLAP's allocation and one width for all are
tried besides, and the best of them is improved by moving units from one layer to another as long as KL falls.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence

from llm_pruner.console import progress
from llm_pruner.errors import PlanError
from llm_pruner.model.axes import KV_HEADS, MLP, Axis, Layers, Widths, heads_per_group, with_heads
from llm_pruner.reconstruction.costs import Costs
from llm_pruner.reconstruction.search import head_counts
from llm_pruner.shape.budget import TOLERANCE, Goal
from llm_pruner.shape.counter import ParameterCounter

# of a layer's neurons, that are moved at once at first and at last
FAR, NEAR = 0.12, 0.02
# of the moves, that are of heads
OF_HEADS = 0.2
# moves in a row that bring nothing, behind which they get smaller
PATIENCE = 8


def prices(
    costs: Costs, before: Widths, share: float, kl: Callable[[Mapping[int, Widths]], float]
) -> tuple[list[float], list[float]]:
    """Return how many nats the logits notice of a layer's costs, by the measured KL of each layer at one width.

    Args:
        costs: Of the survey.
        before: The widths of the dense model's layers.
        share: Of the neurons, which go while it is measured.
        kl: Measures KL(dense ‖ pruned) of {layer: widths}.

    Returns:
        (for each layer the factor of its heads' costs, that of its neurons' costs), for `Costs.scaled`.
    """
    fewer = before.but({MLP: max(1, round((1 - share) * before[MLP]))})
    kv_heads, per_group = before[KV_HEADS], heads_per_group(before)
    less = with_heads(before, kv_heads - 1, per_group) if kv_heads > 1 else with_heads(before, 1, per_group - 1)
    heads, neurons = [], []
    for layer in progress(range(len(costs.neurons)), desc="price", unit="layer"):
        neurons.append(kl({layer: fewer}) / max(costs.of_neurons(layer, fewer[MLP]), 1e-12))
        # one head of one group, which never goes
        known = heads_per_group(less) > 0
        heads.append(kl({layer: less}) / max(costs.of(layer, less), 1e-12) if known else neurons[-1])
    return heads, neurons


def improved(
    layers: Layers,
    best: float,
    before: Widths,
    axes: Sequence[Axis],
    kl: Callable[[Mapping[int, Widths]], float],
    minutes: float,
    seed: int = 0,
) -> tuple[Layers, float, int]:
    """Move units from one layer to another, as many parameters in all, as long as KL falls.

    Args:
        layers: The widths to start from.
        best: Their KL.
        before: The widths of the dense model's layers.
        axes: Those that may shrink.
        kl: Measures KL(dense ‖ pruned) of {layer: widths}.
        minutes: How long.
        seed: Of the moves.

    Returns:
        The widths, their KL, and how many were measured.
    """
    draw, started, tried = random.Random(seed), time.monotonic(), 0
    step, failed = FAR, 0
    while time.monotonic() - started < 60 * minutes and step >= NEAR and len(layers) > 1:
        moved = _moved(layers, before, axes, step, draw)
        tried += moved is not None
        found = best if moved is None else kl(changed(moved, before))
        if moved is not None and found < best:
            layers, best, failed = moved, found, 0
        else:
            failed += 1
        if failed == PATIENCE:
            step, failed = step / 2, 0
    return layers, best, tried


def changed(layers: Layers, before: Widths) -> dict[int, Widths]:
    """Return {number of a layer: its widths} of those whose widths are others than before."""
    return {index: widths for index, widths in enumerate(layers) if widths != before}


def _moved(layers: Layers, before: Widths, axes: Sequence[Axis], step: float, draw: random.Random) -> Layers | None:
    """The widths with some units in one layer less and in another more; None where that is not possible."""
    giver, taker = draw.sample(range(len(layers)), 2)
    own = list(layers)
    if KV_HEADS in axes and (MLP not in axes or draw.random() < OF_HEADS):
        per_group = heads_per_group(before)
        groups = layers[giver][KV_HEADS] - 1, layers[taker][KV_HEADS] + 1
        alike = heads_per_group(layers[giver]) == heads_per_group(layers[taker]) == per_group
        if groups[0] < 1 or groups[1] > before[KV_HEADS] or not alike:
            return None
        own[giver], own[taker] = (with_heads(layers[at], n, per_group) for at, n in zip((giver, taker), groups))
        return tuple(own)
    number = min(round(step * before[MLP]), layers[giver][MLP] - 1, before[MLP] - layers[taker][MLP])
    if MLP not in axes or number < 1:
        return None
    own[giver] = layers[giver].but({MLP: layers[giver][MLP] - number})
    own[taker] = layers[taker].but({MLP: layers[taker][MLP] + number})
    return tuple(own)


def layers_by_costs(
    counter: ParameterCounter, axes: Sequence[Axis], goal: Goal, costs: Costs, most: Layers | None = None
) -> Layers:
    """Return widths of its own for every layer: the least total cost at the goal, one price per parameter for all.

    Args:
        counter: Of the dense model.
        axes: Those that may shrink.
        goal: What has to be met.
        costs: Of heads and neurons in each layer.
        most: The widths that each layer has at most; None for those of the dense model.

    Raises:
        PlanError: The goal cannot be met.
    """
    before, most = counter.before, most or counter.full
    full = goal.count(counter, counter.full)
    one = full - goal.count(counter, (before.but({MLP: before[MLP] - 1}), *counter.full[1:]))
    choices = [_choices(counter, axes, goal, costs, layer, one, own) for layer, own in enumerate(most)]
    chosen, saved = _at_one_price(choices, full - goal.parameters)
    if MLP in axes:
        chosen = _given_back(chosen, int((saved - (full - goal.parameters)) // one), costs, most)
    if goal.missed(counter, tuple(chosen)) > (TOLERANCE if goal.whole else 0.005):
        names = ", ".join(axis.name for axis in axes)
        raise PlanError(f"{names} of single layers cannot meet the budget; ask for less, or `prune` more axes")
    return tuple(chosen)


# what a layer's widths cost, the parameters that they save, the widths
Choice = tuple[float, float, Widths]


def _choices(
    counter: ParameterCounter, axes: Sequence[Axis], goal: Goal, costs: Costs, layer: int, one: float, most: Widths
) -> list[Choice]:
    """Of a layer; one: parameters of a neuron; most: the widths that it has at most."""
    before = counter.before
    full = goal.count(counter, counter.full)
    points = [kept for kept, _ in costs.neurons[layer]] if MLP in axes else []
    neurons = [most[MLP], *(kept for kept in points if kept < most[MLP])]
    found = []
    for kv_heads, per_group in head_counts(before, axes):
        fewer = with_heads(before, kv_heads, per_group)
        if kv_heads > most[KV_HEADS] or per_group > heads_per_group(most):
            continue
        price = full - goal.count(counter, (fewer, *counter.full[1:]))
        for kept in neurons:
            widths = fewer.but({MLP: kept})
            found.append((costs.of(layer, widths), price + one * (before[MLP] - kept), widths))
    return found


def _at_one_price(choices: Sequence[Sequence[Choice]], wanted: float) -> tuple[list[Widths], float]:
    """(widths of each layer, the parameters that they save: at least as many as are `wanted`, at the least cost)."""

    def at(rate: float) -> list[Choice]:
        return [min(layer, key=lambda choice: choice[0] - rate * choice[1]) for layer in choices]

    def saved(rate: float) -> float:
        return sum(choice[1] for choice in at(rate))

    low, high = 0.0, 1.0
    while saved(high) < wanted and high < 1e12:
        high *= 4
    for _ in range(80):
        rate = (low + high) / 2
        low, high = (rate, high) if saved(rate) < wanted else (low, rate)
    return [widths for _, _, widths in at(high)], saved(high)


def _given_back(chosen: list[Widths], spare: int, costs: Costs, most: Layers) -> list[Widths]:
    """The widths with `spare` neurons more, each where it helps most: the points of the curves are some apart."""
    chosen = list(chosen)
    for _ in range(spare):
        gains = [
            (costs.of(i, widths) - costs.of(i, widths.but({MLP: widths[MLP] + 1})), i)
            for i, widths in enumerate(chosen)
            if widths[MLP] < most[i][MLP]
        ]
        if not gains:
            break
        _, place = max(gains)
        chosen[place] = chosen[place].but({MLP: chosen[place][MLP] + 1})
    return chosen
