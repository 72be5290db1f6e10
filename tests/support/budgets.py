"""Budgets and costs to share out, on the shapes of tiny models."""

import itertools

from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, heads_per_group
from llm_pruner.reconstruction import search
from llm_pruner.reconstruction.costs import Costs
from llm_pruner.shape.budget import Goal
from llm_pruner.shape.counter import ParameterCounter
from tests.support import tiny
from tests.support.toys import counter_of


def counted(case: str, **changes):
    """(counter, config) of a tiny model."""
    config = tiny.config(case, **changes)
    return counter_of(config), config


def budget_of(counter: ParameterCounter, share: float, whole: bool) -> Goal:
    """`share` of the parameters should go."""
    full = counter.everywhere(counter.before)
    return Goal((1 - share) * (counter.total(full) if whole else counter.decoder(full)), whole)


def made_up(counter: ParameterCounter, *factors: float) -> Costs:
    """Convex ones: of the heads and of the neurons that go, squared, times a factor for each layer, which is also what
    the layer costs as a whole."""
    before = counter.before
    shapes = itertools.product(range(1, before[KV_HEADS] + 1), range(1, heads_per_group(before) + 1))
    heads = {(kv, each): 1 - kv * each / before[HEADS] for kv, each in shapes}
    points = range(before[MLP], 0, -7)
    factors = factors or (1.0,) * counter.num_layers
    return Costs(
        tuple({shape: factor * cost**2 for shape, cost in heads.items()} for factor in factors),
        tuple(tuple((n, factor * (1 - n / before[MLP]) ** 2) for n in points) for factor in factors),
        factors,
    )


def missed(counter: ParameterCounter, budget: Goal, after) -> float:
    """How far the layers are from the budget, relative to it."""
    return abs(budget.count(counter, after) / budget.parameters - 1)


def total(costs: Costs, layers) -> float:
    """Of layers of these widths."""
    return sum(costs.of(layer, widths) for layer, widths in enumerate(layers))


def candidates(counter: ParameterCounter, config, axes, goal: Goal, costs: Costs, shallow=None, untied=None):
    """The candidates of the search in a space of these; see `search.Space`."""
    return search.candidates(search.Space(counter, config, axes, goal, shallow or {}, untied), costs)
