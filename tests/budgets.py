"""Budgets and costs to share out, on the shapes of tiny models."""

import itertools

from llm_pruner.model.families import widths_of
from llm_pruner.model.skeleton import meta_model
from llm_pruner.model.trace import trace_groups
from llm_pruner.reconstruction.costs import Costs
from llm_pruner.shape.budget import Budget, Ledger
from tests import tiny


def ledger_of(case: str, **changes):
    """(ledger, config) of a tiny model."""
    config = tiny.config(case, **changes)
    model = meta_model(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return Ledger(shapes, tuple(trace_groups(model)), widths_of(config), config.num_hidden_layers), config


def budget_of(ledger: Ledger, share: float, whole: bool) -> Budget:
    """`share` of the parameters should go."""
    full = ledger.all_layers(ledger.before)
    return Budget((1 - share) * (ledger.total(full) if whole else ledger.decoder(full)), whole)


def made_up(ledger: Ledger, *factors: float) -> Costs:
    """Convex ones: of the heads and of the neurons that go, squared, times a factor for each layer, which is also what
    the layer costs as a whole."""
    before = ledger.before
    shapes = itertools.product(range(1, before.num_key_value_heads + 1), range(1, before.heads_per_group + 1))
    heads = {(kv, each): 1 - kv * each / before.num_attention_heads for kv, each in shapes}
    points = range(before.intermediate_size, 0, -7)
    factors = factors or (1.0,) * ledger.num_layers
    return Costs(
        tuple({shape: factor * cost**2 for shape, cost in heads.items()} for factor in factors),
        tuple(tuple((n, factor * (1 - n / before.intermediate_size) ** 2) for n in points) for factor in factors),
        factors,
    )


def missed(ledger: Ledger, budget: Budget, after) -> float:
    """How far the layers are from the budget, relative to it."""
    return abs(budget.count(ledger, after) / budget.goal - 1)


def total(costs: Costs, layers) -> float:
    """Of layers of these widths."""
    return sum(costs.of(layer, widths) for layer, widths in enumerate(layers))
