"""Widths of every layer by measured KL: prices in nats, and moves between layers that keep the budget."""

import pytest

from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.reconstruction.allocation import changed, improved, layers_by_costs, prices
from tests.support.budgets import budget_of, counted, made_up

AXES = (KV_HEADS, HEADS, MLP)
WEIGHTS = (1.0, 9.0, 0.25, 4.0)


@pytest.fixture
def counter():
    return counted("llama", num_hidden_layers=4)[0]


def loss(before):
    """KL of widths, in which layers count as WEIGHTS say, of neurons and of kv groups."""

    def kl(widths) -> float:
        gone = {
            layer: (1 - own[MLP] / before[MLP], 1 - own[KV_HEADS] / before[KV_HEADS]) for layer, own in widths.items()
        }
        return sum(WEIGHTS[layer] * (neurons**2 + heads**2) for layer, (neurons, heads) in gone.items())

    return kl


def test_prices_are_what_the_logits_notice(counter):
    """Costs that are alike in every layer become those that were measured, along the whole curve."""
    before = counter.before
    costs, kl = made_up(counter), loss(counter.before)
    in_nats = costs.scaled(*prices(costs, before, 0.5, kl))
    for layer, weight in enumerate(WEIGHTS):
        half = before.but({MLP: before[MLP] // 2})
        assert in_nats.of(layer, half) == pytest.approx(kl({layer: half}), rel=0.02)
        for widths in (half, before.but({MLP: before[MLP] // 4})):
            assert in_nats.of_neurons(layer, widths[MLP]) == pytest.approx(
                weight * costs.of_neurons(layer, widths[MLP]), rel=0.02
            )


def test_a_layer_that_counts_more_keeps_more(counter):
    budget, kl = budget_of(counter, 0.2, False), loss(counter.before)
    costs = made_up(counter)
    layers = layers_by_costs(counter, (MLP,), budget, costs.scaled(*prices(costs, counter.before, 0.2, kl)))
    kept = [own[MLP] for own in layers]
    assert kept[1] > kept[3] > kept[0] > kept[2]
    plain = layers_by_costs(counter, (MLP,), budget, made_up(counter))
    assert kl(changed(layers, counter.before)) < 0.7 * kl(changed(plain, counter.before))


def test_no_layer_exceeds_what_it_may_have_at_most(counter):
    """Whatever goes then comes from the others, also where that costs more."""
    costs, before = made_up(counter), counter.before
    first = layers_by_costs(counter, AXES, budget_of(counter, 0.2, False), costs)
    narrow = (before.but({MLP: before[MLP] // 3 + 1}), *first[1:])
    budget = budget_of(counter, 0.5, False)
    layers = layers_by_costs(counter, AXES, budget, costs, narrow)
    assert all(own[axis] <= most[axis] for own, most in zip(layers, narrow, strict=True) for axis in AXES)
    assert budget.missed(counter, layers) < 0.005
    assert layers_by_costs(counter, AXES, budget, costs)[0][MLP] > narrow[0][MLP], "else nothing was tested"


def test_moves_bring_kl_down_and_keep_the_budget(counter):
    before, kl = counter.before, loss(counter.before)
    start = counter.everywhere(
        before.but({MLP: before[MLP] // 2, HEADS: before[HEADS] // 2, KV_HEADS: before[KV_HEADS] // 2})
    )
    size = counter.decoder(start)
    layers, best, tried = improved(start, kl(changed(start, before)), before, AXES, kl, minutes=0.02, seed=0)
    assert best == kl(changed(layers, before)) < 0.8 * kl(changed(start, before))
    assert counter.decoder(layers) == size
    assert tried > 8
    assert all(1 <= own[axis] <= before[axis] for own in layers for axis in AXES)
    assert any(own[KV_HEADS] != start[0][KV_HEADS] for own in layers)


def test_no_time_and_one_layer_change_nothing(counter):
    before, kl = counter.before, loss(counter.before)
    start = counter.everywhere(before.but({MLP: before[MLP] // 2}))
    assert improved(start, 1.0, before, AXES, kl, minutes=0)[0] == start
    assert improved(start[:1], 1.0, before, AXES, kl, minutes=1)[0] == start[:1]


def test_only_the_axes_that_may_shrink_move(counter):
    before, kl = counter.before, loss(counter.before)
    start = counter.everywhere(before.but({MLP: before[MLP] // 2}))
    layers, _, _ = improved(start, kl(changed(start, before)), before, (MLP,), kl, minutes=0.01)
    assert {own[KV_HEADS] for own in layers} == {before[KV_HEADS]}
