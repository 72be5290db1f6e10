"""What units cost in every layer, against least squares from the tokens, and the widths that follow."""

import itertools

import pytest
import torch

from llm_pruner.calibration.layerwise import walk
from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, MLP, heads_per_group
from llm_pruner.model.families import widths_of
from llm_pruner.model.trace import trace_groups
from llm_pruner.reconstruction.allocation import layers_by_costs
from llm_pruner.reconstruction.costs import Costs, measure_layers
from llm_pruner.reconstruction.second_order import RIDGE
from llm_pruner.reconstruction.survey import survey
from tests.support import tiny, toys
from tests.support.budgets import budget_of, counted, made_up, missed, total

BLOCK = (KV_HEADS, HEADS, MLP)


def test_costs_are_interpolated():
    heads = ({(2, 1): 10.0, (1, 1): 20.0}, {(2, 1): 0.0, (1, 1): 100.0})
    costs = Costs(heads, (((8, 0.0), (6, 1.0), (2, 5.0)), ((8, 0.0), (4, 8.0))))
    widths = toys.widths(16, 2, 2, 8, 4)
    found = [costs.of(0, widths.but({MLP: n})) for n in (9, 8, 7, 6, 5, 3, 2, 1)]
    assert found == [10, 10, 10.5, 11, 12, 14, 15, 15]
    fewer = widths.but({HEADS: 1, KV_HEADS: 1, MLP: 6})
    assert costs.of(1, fewer) == 104


@pytest.fixture(scope="module")
def measured():
    """(model, batches, costs) of 33 neurons a layer, so that every one is a point of the curve."""
    torch.manual_seed(0)
    model, batches = tiny.model("llama_multi_head", intermediate_size=33), list(tiny.tokens(12, 16).split(6))
    return model, batches, survey(model, trace_groups(model), batches, widths_of(model.config)).costs


@torch.no_grad()
def rises(model, batches, layer: int, name: str, width: int) -> list[float]:
    """By how much the error of least squares is higher without one unit: the squared error of the stream behind the
    layer, with the weights of the tokens, and the ridge towards the dense weights. Float64, from the tokens."""
    seen, weights = [], []
    for place in walk(model, batches):
        if place.index == layer:
            writer = place.module.get_submodule(name)
            hook = writer.register_forward_hook(lambda _, x, y: seen.append((x[0], y)))
            place.run()
            hook.remove()
            weights += [1 / out.flatten(0, 1).double().square().sum(1, keepdim=True) for out in place.outputs]
    x, y = (torch.cat([tensor.flatten(0, 1) for tensor in own]).double() for own in zip(*seen, strict=True))
    scale = (len(x) / torch.cat(weights)).sqrt()  # of the rows, so that squares add up to the mean relative error
    prior = torch.cat([writer.weight, writer.bias[:, None]], 1).double()
    rows, wanted = torch.cat([x, torch.ones_like(x[:, :1])], 1) / scale, y / scale
    pull = (RIDGE * rows.square().sum(0).mean()).sqrt() * torch.eye(prior.shape[1], dtype=torch.double)
    pull[-1] = 0.0
    rows, wanted = torch.cat([rows, pull]), torch.cat([wanted, pull @ prior.T])

    def least(columns) -> float:
        own = rows[:, columns]
        return (wanted - own @ torch.linalg.lstsq(own, wanted).solution).square().sum().item()

    every = list(range(prior.shape[1]))
    return [least(every[:start] + every[start + width :]) - least(every) for start in range(0, len(every) - 1, width)]


@pytest.mark.parametrize("layer", [0, 1])
def test_the_first_unit_costs_what_the_stream_loses(measured, layer):
    """Relative to its energy, although the rest is fitted."""
    model, batches, costs = measured
    neurons = rises(model, batches, layer, "mlp.down_proj", 1)
    assert costs.neurons[layer][:2] == ((33, 0.0), (32, pytest.approx(min(neurons), rel=1e-3)))
    heads = rises(model, batches, layer, "self_attn.o_proj", 6)
    assert costs.heads[layer][8, 1] == 0
    assert costs.heads[layer][7, 1] == pytest.approx(min(heads), rel=1e-3)


def test_fewer_units_cost_more(measured):
    _, _, costs = measured
    for layer in (0, 1):
        assert [kept for kept, _ in costs.neurons[layer]] == list(range(33, 0, -1))
        found = [cost for _, cost in costs.neurons[layer]]
        assert all(low < high for low, high in zip(found, found[1:]))
        found = [costs.heads[layer][kv_heads, 1] for kv_heads in range(8, 0, -1)]
        assert all(low < high for low, high in zip(found, found[1:]))


@pytest.mark.parametrize("case", ["llama", "gpt2", "gpt_neox", "phi3", "gemma3_text"])
def test_every_family_and_group_has_costs(case):
    """Silent neurons and heads are free."""
    model = tiny.model(case)
    counter, _ = counted(case)
    groups, before = trace_groups(model), counter.before
    parameters = dict(model.named_parameters())
    for group in groups:
        if group.layer == 1:
            for member in group.members:
                if member.reads:
                    gone = member.positions(torch.arange(group.units // 2))
                    parameters[member.parameter].data.index_fill_(member.dim, gone, 0.0)
    costs = survey(model, groups, [tiny.tokens(8, 16)], before).costs
    shapes = set(itertools.product(range(1, before[KV_HEADS] + 1), range(1, heads_per_group(before) + 1)))
    half = next(cost for kept, cost in costs.neurons[1] if kept <= before[MLP] // 2 + 4)
    for layer in (0, 1):
        assert set(costs.heads[layer]) == shapes
        assert costs.neurons[layer][0] == (before[MLP], 0)
        assert costs.neurons[layer][-1][0] == 1
    full = before[KV_HEADS], heads_per_group(before)
    assert half < 1e-2 * costs.neurons[1][-1][1]
    assert costs.heads[1][full[0] // 2, full[1]] < 1e-6 + 1e-2 * costs.heads[0][full[0] // 2, full[1]]


@pytest.mark.parametrize("case", ["llama", "mistral", "llama_multi_head"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_layers_meet_the_budget(case, share):
    counter, _ = counted(case, num_hidden_layers=4)
    budget, before = budget_of(counter, share, False), counter.before
    layers = layers_by_costs(counter, BLOCK, budget, made_up(counter, 1.0, 4.0, 0.1, 2.0))
    assert missed(counter, budget, layers) < 0.005 / (1 - share)
    for widths in layers:
        assert widths[HEADS] % widths[KV_HEADS] == 0
        assert (widths[HIDDEN], widths[HEAD_DIM]) == (before[HIDDEN], before[HEAD_DIM])
        assert all(1 <= width <= before[axis] for axis, width in widths.items())


def test_a_layer_that_costs_more_keeps_more():
    counter, _ = counted("llama", num_hidden_layers=4)
    layers = layers_by_costs(counter, BLOCK, budget_of(counter, 0.4, False), made_up(counter, 1.0, 4.0, 0.1, 2.0))
    sizes = [counter.decoder(counter.everywhere(widths)) for widths in layers]
    assert sorted(range(4), key=lambda layer: sizes[layer]) == [2, 0, 3, 1]
    assert len(set(sizes)) == 4


def test_equal_layers_share_alike():
    counter, _ = counted("llama", num_hidden_layers=4)
    layers = layers_by_costs(counter, BLOCK, budget_of(counter, 0.4, False), made_up(counter))
    assert len({(widths[KV_HEADS], widths[HEADS]) for widths in layers}) == 1
    neurons = [widths[MLP] for widths in layers]
    assert max(neurons) - min(neurons) <= 7, "the points of the curves are seven apart"


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.4, 0.6])
def test_no_other_layers_cost_much_less(share):
    """Of all pairs of layers at that budget, in steps of a neuron."""
    counter, _ = counted("llama", intermediate_size=29)
    budget, before = budget_of(counter, share, False), counter.before
    costs = made_up(counter, 1.0, 3.0)
    found = layers_by_costs(counter, BLOCK, budget, costs)
    every = [
        before.but({KV_HEADS: kv, HEADS: kv * each, MLP: n})
        for kv, each, n in itertools.product(range(1, 5), (1, 2), range(1, 30))
    ]
    size = {widths: counter.decoder(counter.everywhere(widths)) / 2 for widths in every}
    cheapest = {}  # of the second layer, by its size
    for widths in every:
        cheapest[size[widths]] = min(cheapest.get(size[widths], 9.0), costs.of(1, widths))
    best = min(
        costs.of(0, widths) + cost
        for widths in every
        for rest, cost in cheapest.items()
        if abs(size[widths] + rest - budget.parameters) <= missed(counter, budget, found) * budget.parameters
    )
    assert total(costs, found) < 1.1 * best


def test_only_the_axes_that_may_go_do():
    counter, _ = counted("llama", num_hidden_layers=4)
    costs, before = made_up(counter, 1.0, 4.0, 0.1, 2.0), counter.before
    narrow = layers_by_costs(counter, (MLP,), budget_of(counter, 0.2, False), costs)
    assert sum(widths[MLP] for widths in narrow) < 4 * before[MLP]
    assert {widths.but({MLP: before[MLP]}) for widths in narrow} == {before}
    fewer = layers_by_costs(counter, (HEADS, MLP), budget_of(counter, 0.4, False), costs)
    assert sum(widths[HEADS] for widths in fewer) < 4 * before[HEADS]
    assert {widths[KV_HEADS] for widths in fewer} == {before[KV_HEADS]}


@pytest.mark.parametrize(("axes", "share"), [((MLP,), 0.9), ((HEADS,), 0.9), ((KV_HEADS,), 0.08)])
def test_a_budget_that_no_layers_meet(axes, share):
    counter, _ = counted("llama")
    with pytest.raises(PlanError, match="single layers cannot meet the budget; ask for less, or `prune` more axes"):
        layers_by_costs(counter, axes, budget_of(counter, share, False), made_up(counter))


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_the_cost_of_whole_layers_needs_no_surgery(case):
    model, batches = tiny.model(case), [tiny.tokens(4, 12)]
    costs = survey(model, trace_groups(model), batches, widths_of(model.config)).costs
    assert measure_layers(model, batches).layers == costs.layers
