"""Widths by budget: costs, AMP's iterations, UL-UM, UL-MM and param_ratio, by hand."""

import pytest

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, MLP, Widths
from llm_pruner.shape.budget import (
    TOLERANCE,
    Goal,
    smallest,
    widths_by_iteration,
    widths_by_parameters,
    widths_by_structure,
)
from llm_pruner.shape.draft import share_of
from llm_pruner.shape.request import Budget
from tests.support.toys import counter_of, heads_and_neurons, hundred, toy, widths

# A neuron costs 3·hidden parameters, a head 4·head_dim·hidden.


@pytest.fixture(scope="module")
def llama_2_7b():
    """Attention 4·4096² = 67,108,864 and MLP 3·4096·11008 = 135,266,304: 202,375,168 a layer; two norms: 8192."""
    return counter_of(
        hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_hidden_layers=32, vocab_size=32000
    )


@pytest.fixture(scope="module")
def grouped():
    """A quarter of Llama-3-8B's layers. Attention 2·4096² + 2·4096·1024 = 41,943,040, MLP 3·4096·14336 = 176,160,768:
    218,103,808 a layer."""
    return counter_of(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=8
    )


def test_costs(llama_2_7b, grouped):
    before = llama_2_7b.before
    head = llama_2_7b.cost(before, {HEADS: 1, KV_HEADS: 1})
    neuron = llama_2_7b.cost(before, {MLP: 1})
    assert (head, neuron) == (4 * 128 * 4096, 3 * 4096)
    assert head * 3 == neuron * 512
    assert llama_2_7b.decoder(llama_2_7b.everywhere(before)) == 32 * 202_375_168
    assert llama_2_7b.of_layer_0() == 202_383_360
    assert llama_2_7b.total(llama_2_7b.everywhere(before)) == 6_738_415_616  # the published size
    # four query heads with their rows of q and columns of o, one key and one value head: 10·128 rows of 4096
    assert grouped.cost(grouped.before, {HEADS: 4, KV_HEADS: 1}) == 10 * 128 * 4096
    assert grouped.decoder(grouped.everywhere(grouped.before)) == 8 * 218_103_808


@pytest.mark.parametrize(
    ("iteration", "heads", "neurons"),
    # ρ' = i/32 · 202,383,360/202,375,168 = i · 0.03125126498
    [
        (1, 1, 344),  # 1.00004 heads; 1.00004 - 1 + 344.01392 = 344.01397
        (8, 8, 2752),  # 8.00032 heads; 0.00032 + 2752.11140 = 2752.11172
        (16, 16, 5504),  # 16.00065 heads; 0.00065 + 5504.22279 = 5504.22344
        (31, 31, 10664),  # 31.00125 heads; 0.00125 + 10664.43166 = 10664.43292
    ],
)
def test_amp_iteration_on_llama_2_7b(llama_2_7b, iteration, heads, neurons):
    after = widths_by_iteration(llama_2_7b, iteration)
    assert after == widths(4096, 32 - heads, 32 - heads, 11008 - neurons, 128)


@pytest.mark.parametrize(
    ("iteration", "heads", "neurons"),
    # layer 0 with its norms: 4·8·4·24 + 3·24·100 + 2·24 = 10,320, attention and MLP of all: 3·10,272 = 30,816;
    # ρ' = i · 0.334891
    [
        (1, 3, 33),  # 2.67913 heads; 2.67913 - 3 + 33.48910 = 33.16823
        (2, 5, 67),  # 5.35826 heads; 0.35826 + 66.97819 = 67.33645
    ],
)
def test_amp_iteration_makes_up_for_rounded_heads_in_neurons(iteration, heads, neurons):
    counter = counter_of(
        hidden_size=24, num_attention_heads=8, num_key_value_heads=8, head_dim=4, intermediate_size=100,
        num_hidden_layers=3,
    )  # fmt: skip
    assert widths_by_iteration(counter, iteration) == widths(24, 8 - heads, 8 - heads, 100 - neurons, 4)


def test_amp_iteration_leaves_one_head():
    """ρ' = (240 + 8)/480 = 0.51667 of two heads, then of one: the head stays, neurons compensate for it."""
    assert heads_and_neurons([widths_by_iteration(toy(), 1)]) == [(1, 2)]  # 1.0333 - 1 + 2.0667 = 2.1
    one_head = counter_of(
        hidden_size=4,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=6,
        intermediate_size=4,
        num_hidden_layers=2,
    )  # ρ' = (96 + 48 + 8)/288 = 0.52778: 0.52778 - 0 + 2.11111 = 2.63889
    assert heads_and_neurons([widths_by_iteration(one_head, 1)]) == [(1, 1)]


def test_amp_iteration_with_grouped_queries_takes_as_many_in_every_group(grouped):
    """ρ' = 3/8 · 218,112,000/218,103,808 = 0.3750141: 1.50006 of four heads a group → 2, so 16; neurons:
    12.00045 - 16 + 5376.20192 = 5372.20237."""
    assert widths_by_iteration(grouped, 3) == widths(4096, 16, 8, 14336 - 5372, 128)


def test_amp_iteration_of_all_layers():
    with pytest.raises(PlanError, match="leaves nothing"):
        widths_by_iteration(toy(), 2)


@pytest.mark.parametrize(
    ("ratio", "heads", "neurons"),
    [
        (0.3, 9, 3302),  # ⌊9.6⌋, ⌊3302.4⌋
        (0.25, 8, 2752),
        (0.03, 0, 330),  # ⌊0.96⌋, ⌊330.24⌋
        (0.97, 31, 10677),  # ⌊31.04⌋, ⌊10677.76⌋
    ],
)
def test_ul_um_floors(llama_2_7b, ratio, heads, neurons):
    after = widths_by_structure(llama_2_7b, "UL-UM", ratio, (HEADS, MLP), 0)
    assert after == widths(4096, 32 - heads, 32 - heads, 11008 - neurons, 128)


def test_ul_um_with_grouped_queries(grouped):
    """⌊0.6·4⌋ = 2 of each group's four; ⌊0.6·14336⌋ = ⌊8601.6⌋."""
    assert widths_by_structure(grouped, "UL-UM", 0.6, (HEADS, MLP), 0) == widths(4096, 16, 8, 14336 - 8601, 128)


def test_ul_um_of_one_kind(llama_2_7b):
    assert widths_by_structure(llama_2_7b, "UL-UM", 0.5, (MLP,), 0) == Widths(
        {HIDDEN: 4096, HEADS: 32, KV_HEADS: 32, MLP: 5504, HEAD_DIM: 128}
    )
    assert widths_by_structure(llama_2_7b, "UL-UM", 0.5, (HEADS,), 0) == Widths(
        {HIDDEN: 4096, HEADS: 16, KV_HEADS: 16, MLP: 11008, HEAD_DIM: 128}
    )


@pytest.mark.parametrize("structure", ["UL-UM", "UL-MM"])
def test_floor_is_of_the_ratio_that_was_written(structure):
    """In binary 0.58·100 is 57.99…, 0.41·2400 is 983.99…; the whole numbers are meant."""
    if structure == "UL-UM":
        big = counter_of(
            hidden_size=8, num_attention_heads=2, num_key_value_heads=2, head_dim=3, intermediate_size=100,
            num_hidden_layers=1,
        )  # fmt: skip
        assert widths_by_structure(big, structure, 0.58, (MLP,), 0)[MLP] == 42
    else:
        assert widths_by_structure(hundred(), structure, 0.41, (HEADS, MLP), 0)[MLP] == 92 - 41


def test_ul_mm(llama_2_7b):
    """100 // 32 = 3 heads a layer; 0.2·202,375,168 - 3·2,097,152 = 34,183,577.6, by 12,288: 2781.87 neurons."""
    after = widths_by_structure(llama_2_7b, "UL-MM", 0.2, (HEADS, MLP), 100)
    assert after == widths(4096, 29, 29, 11008 - 2781, 128)


def test_ul_mm_with_grouped_queries(grouped):
    """130 // 8 = 16 heads a layer, two in each group, rows of q and columns of o: 16·2·128·4096 = 16,777,216;
    0.25·218,103,808 - that = 37,748,736, by 12,288: exactly 3072."""
    after = widths_by_structure(grouped, "UL-MM", 0.25, (HEADS, MLP), 130)
    assert after == widths(4096, 16, 8, 14336 - 3072, 128)


def test_param_ratio_by_hand(llama_2_7b):
    """⌊6.4⌉ = 6 heads; 0.2·202,375,168 - 6·2,097,152 = 27,892,121.6, by 12,288: 2269.87 → 2270 neurons."""
    goal = 0.8 * 32 * 202_375_168
    after = widths_by_parameters(llama_2_7b, (HEADS, MLP), Goal(goal, False), lambda _: True)
    assert after == widths(4096, 26, 26, 11008 - 2270, 128)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8])
@pytest.mark.parametrize("which", ["llama_2_7b", "grouped"])
def test_param_ratio_is_met(request, which, ratio):
    """Within 1 %, by the formula for a layer's parameters; and nearer than one neuron in every layer."""
    counter = request.getfixturevalue(which)
    layers, before = counter.num_layers, counter.before
    assert share_of(Budget(param_ratio=ratio), counter, None) == ratio

    def parameters(w: Widths) -> int:
        return layers * 4096 * (128 * 2 * (w[HEADS] + w[KV_HEADS]) + 3 * w[MLP])

    goal = (1 - ratio) * parameters(before)
    after = widths_by_parameters(counter, (HEADS, MLP), Goal(goal, False), lambda _: True)
    assert abs(parameters(after) - goal) <= 0.01 * parameters(before)
    assert abs(parameters(after) - goal) <= layers * 3 * 4096 / 2
    assert after[HEADS] < 32 or ratio < 0.2


@pytest.mark.parametrize(
    ("budget", "element_size", "goal"),
    [
        (Budget(params="1.2B"), 2, 1_200_000_000),
        (Budget(params="350M"), 4, 350_000_000),
        (Budget(params=6_500_000), 4, 6_500_000),
        (Budget(memory="8GB"), 2, 4_000_000_000),
        (Budget(memory="1GiB"), 4, 268_435_456),
        (Budget(memory="1003"), 2, 501),  # never a byte more than there is
        (Budget(param_ratio=0.3), 2, None),
    ],
)
def test_parameters_left(budget, element_size, goal):
    assert budget.parameters_left(element_size) == goal


def test_share_that_reaches_a_goal(llama_2_7b):
    """(6,738,415,616 - goal) / 6,476,005,376 of attention and MLP; the embeddings and norms hold 262,410,240."""
    budget = Budget(memory="10GB")
    assert share_of(budget, llama_2_7b, budget.parameters_left(2)) == pytest.approx(0.2684395, abs=1e-7)
    assert share_of(budget, llama_2_7b, 262_410_240) == 1
    assert share_of(budget, llama_2_7b, 100_000_000) > 1
    with pytest.raises(PlanError, match="`memory` 10GB: the model has 6,738,415,616 parameters; ask for fewer"):
        share_of(budget, llama_2_7b, 6_738_415_616)


def test_ul_mm_never_takes_more_than_its_share(llama_2_7b):
    with pytest.raises(PlanError, match="remove_heads 512 is more than 0.05 of the parameters"):
        widths_by_structure(llama_2_7b, "UL-MM", 0.05, (HEADS, MLP), 512)


def test_ul_mm_of_less_than_a_head_in_each_layer(llama_2_7b):
    with pytest.raises(PlanError, match="the least is 32"):
        widths_by_structure(llama_2_7b, "UL-MM", 0.2, (HEADS, MLP), 31)


@pytest.mark.slow
@pytest.mark.parametrize("goal", [1, 10, 1000])
@pytest.mark.parametrize("kinds", [(MLP,), (HEADS, MLP), (HIDDEN, HEADS, KV_HEADS, MLP)])
def test_a_size_that_cannot_be_met_comes_with_the_nearest(grouped, goal, kinds):
    least = grouped.total(grouped.everywhere(smallest(grouped.before, kinds)))
    with pytest.raises(PlanError, match=f"{goal:,} parameters are wanted, the nearest is {least:,}; ask for that"):
        widths_by_parameters(grouped, kinds, Goal(goal, True), lambda _: True)
    met = widths_by_parameters(grouped, kinds, Goal(least, True), lambda _: True)
    assert grouped.total(grouped.everywhere(met)) == least


def test_a_size_is_missed_by_a_share_of_itself_and_a_ratio_by_a_share_of_what_there_was():
    counter = toy()
    full = counter.everywhere(counter.before)
    total, decoder = counter.total(full), counter.decoder(full)
    assert Goal(total / 4, True).missed(counter, full) == 3
    assert Goal(decoder / 4, False).missed(counter, full) == 0.75
    Goal(total / (1 + TOLERANCE * 0.99), True).check(counter, full, (MLP,))
    with pytest.raises(PlanError, match="cannot meet the budget"):
        Goal(total / (1 + TOLERANCE * 1.01), True).check(counter, full, (MLP,))
