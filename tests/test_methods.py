"""Every method against numbers worked out by hand from its formula, on toys that fit in a comment."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

from llm_pruner import Options, calibrate, data, importance, run
from llm_pruner.allocate import adaptive_groups, allocate, standardised
from llm_pruner.architectures import Widths, widths_of
from llm_pruner.budget import Ledger, share_of, widths_by_iteration, widths_by_parameters, widths_by_structure
from llm_pruner.calibrate import Inputs, batches_of
from llm_pruner.compensate.bias import output_biases
from llm_pruner.errors import PlanError, PrunerError
from llm_pruner.evidence import ordered
from llm_pruner.gradients import Products, weight_gradient_products
from llm_pruner.groups import HEADS, HIDDEN, KV_HEADS, MLP, Group, Member, units_of
from llm_pruner.importance import ABSOLUTE, CONTRIBUTION, MOMENTS, Evidence
from llm_pruner.plan import meta_model
from llm_pruner.selection import choose, unit_scores
from llm_pruner.trace import trace_groups
from llm_pruner.weights import Weights
from tests import tiny

# What the output projection reads: a prompt of one token and a prompt of three.
#   column   values       mean  variance  ‖X_j‖
#   0        1  3 1 3     2     1         √20
#   1        0  0 0 4     1     3         4
#   2        2 -2 2 -2    0     4         4
#   3        5  5 5 5     5     0         10
PROMPTS = (
    torch.tensor([[1.0, 0.0, 2.0, 5.0]]),
    torch.tensor([[3.0, 0.0, -2.0, 5.0], [1.0, 0.0, 2.0, 5.0], [3.0, 4.0, -2.0, 5.0]]),
)
# ‖W_:j‖₂²: 2 8 1 25; mean of |W_ij| over the two rows: 1 2 ½ 3½
WEIGHT = torch.tensor([[1.0, 2.0, 0.0, 3.0], [1.0, -2.0, 1.0, -4.0]])
TWO_HEADS = Group("h", HEADS, 0, 2, (Member("w", 1, "linear", 0, 2, 2, reads=True),))
THREE_NEURONS = Group("m", MLP, 0, 3, (Member("w", 1, "linear", reads=True),))


def measured(columns: int = 4) -> Inputs:
    inputs = Inputs({MOMENTS, ABSOLUTE, CONTRIBUTION}, WEIGHT[:, :columns], heads=columns // 2)
    for prompt in PROMPTS:
        inputs.add(prompt[None, :, :columns])
    return inputs


def score(name: str, group: Group, weight: torch.Tensor = WEIGHT, **evidence) -> torch.Tensor:
    """One score per unit."""
    columns = group.units * group.members[0].width
    weight = weight.narrow(group.members[0].axis, 0, columns)
    evidence = Evidence(Weights({"w": weight}), {"w": measured(columns)}, **evidence)
    return unit_scores(importance.score([group], importance.get(name), evidence)[group.name], group.units)


def assert_close(found: torch.Tensor, expected: list[float]):
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


# Statistics of the inputs


def test_statistics_by_hand():
    inputs = measured()
    assert_close(inputs.mean, [2, 1, 0, 5])
    assert_close(inputs.variance, [1, 3, 4, 0])
    assert_close(inputs.norm, [math.sqrt(20), 4, 4, 10])
    # |X|: 1 0 2 5 for the first prompt, 7/3 4/3 2 5 for the second; over tokens it would be 2 1 2 5
    assert_close(inputs.absolute, [5 / 3, 2 / 3, 2, 5])
    assert inputs.mean.dtype == inputs.variance.dtype == torch.float32


@pytest.mark.parametrize("centre", [0.0, 300.0])
def test_statistics_of_unequal_batches_are_those_of_all_tokens(centre):
    """A column far from zero too, whose squares have nothing left of a small variance in float32."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 1), (3, 7), (2, 40), (1, 3), (5, 2))
    parts = [torch.randn(*shape, 6, generator=generator) + centre for shape in shapes]
    weight = torch.randn(5, 6, generator=generator)
    inputs = Inputs({MOMENTS, ABSOLUTE, CONTRIBUTION}, weight, heads=3)
    for part in parts:
        inputs.add(part)
    prompts = [prompt.double() for part in parts for prompt in part]
    rows = torch.cat(prompts)
    expected = {
        "mean": rows.mean(0),
        "variance": (rows - rows.mean(0)).square().mean(0),
        "norm": rows.square().sum(0).sqrt(),
        "absolute": torch.stack([prompt.abs().mean(0) for prompt in prompts]).mean(0),
        "contribution": torch.stack(
            [
                torch.stack(
                    [(p[:, i : i + 2] @ weight[:, i : i + 2].double().T).abs().sum(1).mean() for i in (0, 2, 4)]
                )
                for p in prompts
            ]
        ).mean(0),
    }
    for name, value in expected.items():
        tolerance = 1e-5 * value.abs().max().item()
        torch.testing.assert_close(getattr(inputs, name).double(), value, rtol=1e-5, atol=tolerance, msg=name)


def test_only_neighbours_of_one_length_share_a_batch():
    """No padding, which would count as tokens."""
    lengths = (3, 3, 3, 2, 3, 9)
    batches = batches_of([torch.full((n,), i) for i, n in enumerate(lengths)], tokens=6)
    assert [tuple(batch.shape) for batch in batches] == [(2, 3), (1, 3), (1, 2), (1, 3), (1, 9)]
    assert [row[0].item() for batch in batches for row in batch] == [0, 1, 2, 3, 4, 5]


# Scores


@pytest.mark.parametrize(
    ("metrics", "heads", "neurons"),
    [
        ("IFV", [1 + 9, 16 + 0], [1, 3, 4]),  # the variances; for heads squared, then summed
        ("WIFV", [4 + 576, 16 + 0], [2, 24, 4]),  # 1·2, 3·8, 4·1, 0·25
        ("WIFN", [20 + 64, 4 + 1225], [math.sqrt(20), 8, 2]),  # √20·1, 4·2, 4·½, 10·3½
    ],
)
def test_flap(metrics, heads, neurons):
    assert_close(score("flap", TWO_HEADS, metrics=metrics), heads)
    assert_close(score("flap", THREE_NEURONS, metrics=metrics), neurons)


def test_wanda_sp():
    """√20·1, 4·2, 4·½, 10·3½."""
    assert_close(score("wanda_sp", TWO_HEADS), [math.sqrt(20) + 8, 2 + 35])
    assert_close(score("wanda_sp", THREE_NEURONS), [math.sqrt(20), 8, 2])


def test_mag_sp():
    """√2, √8, √1, √25."""
    assert_close(score("mag_sp", TWO_HEADS), [3 * math.sqrt(2), 6])
    assert_close(score("mag_sp", THREE_NEURONS), [math.sqrt(2), math.sqrt(8), 1])


def test_amp():
    """‖X_h W_hᵀ‖₁ per token. Head 0: (1 1) → 2 | (3 3) → 6, (1 1) → 2, (11 -5) → 16: 2 and 8 by prompt.
    Head 1: (15 -18) → 33 | (15 -22) → 37, 33, 37: 33 and 107/3. Over tokens head 0 would have 6.5."""
    assert_close(score("amp", TWO_HEADS), [(2 + 8) / 2, (33 + 107 / 3) / 2])
    assert_close(score("amp", THREE_NEURONS), [5 / 3, 2 / 3, 2])


def test_a_kv_group_has_the_sum_of_its_heads():
    group = Group("kv", KV_HEADS, 0, 1, (Member("w", 1, "linear", 0, 4, 4, reads=True),))
    assert_close(score("amp", group), [5 + (33 + 107 / 3) / 2])
    assert_close(score("flap", group, metrics="IFV"), [26])


@pytest.mark.parametrize("name", ["flap", "wanda_sp", "mag_sp"])
def test_weights_stored_the_other_way_round(name):
    """gpt2 holds its projections as [in, out]."""
    turned = Group("h", HEADS, 0, 2, (Member("w", 0, "linear", 0, 2, 2, reads=True),))
    torch.testing.assert_close(score(name, turned, WEIGHT.T.contiguous()), score(name, TWO_HEADS))


def test_absolute_means_in_pieces_are_those_of_the_whole(monkeypatch):
    from llm_pruner import weights

    monkeypatch.setattr(weights, "CHUNK", 5)  # one row at a time
    assert_close(Weights({"w": WEIGHT}).absolute_means("w", 1), [1, 2, 0.5, 3.5])
    assert_close(Weights({"w": WEIGHT}).absolute_means("w", 0), [1.5, 2])


def products(w: list[list[float]], g: list[list[float]]) -> Products:
    product = torch.tensor(w) * torch.tensor(g)
    axes = [[other for other in range(product.dim()) if other != axis] for axis in range(product.dim())]
    absolute, signed = (tuple(p.sum(axis) if axis else p for axis in axes) for p in (product.abs(), product))
    return Products(absolute, signed)


def test_taylor():
    """Two heads of two rows in q and two columns in o.

    w·g of q, by row: 1 -2 | 3 1 | -1 -1 | 0 4; so head 0 has |.| 7 and sum 3, head 1 has 6 and 2.
    w·g of o, by row: 1 -1 2 0 | -4 -2 0 2; so head 0 has |.| 8 and sum -6, head 1 has 4 and 4.
    """
    found = {
        "q": products([[1, 2], [3, 1], [1, -1], [5, 2]], [[1, -1], [1, 1], [-1, 1], [0, 2]]),
        "o": products([[1, 1, 2, 0], [4, 2, 3, 1]], [[1, -1, 1, 9], [-1, -1, 0, 2]]),
        "bias": products([1, 1, 1, 1], [50, 50, 50, 50]),
    }
    members = (
        Member("q", 0, "linear", 0, 2, 2), Member("bias", 0, "bias", 0, 2, 2),
        Member("o", 1, "linear", 0, 2, 2, reads=True),
    )  # fmt: skip
    group = Group("h", HEADS, 0, 2, members)
    for taylor, expected in (("param_first", [7 + 8, 6 + 4]), ("vectorize", [abs(3 - 6), abs(2 + 4)])):
        evidence = Evidence(products=found, taylor=taylor)
        assert_close(importance.score([group], importance.get("taylor"), evidence)["h"], expected)


@pytest.mark.parametrize("taylor", ["param_first", "vectorize"])
def test_taylor_of_a_tied_channel_counts_the_shared_tensor_once(taylor):
    """Channel: its column in the embeddings, q, k, v, gate and up, its row in o and down, its norm weights."""
    model = tiny.model("llama_tied", dtype=torch.float64)
    prompts = [tiny.tokens(rows=2, length=9, seed=3), tiny.tokens(rows=1, length=5, seed=4)]
    evidence = Evidence(products=weight_gradient_products(model, prompts), taylor=taylor)
    hidden = next(group for group in trace_groups(model) if group.kind == HIDDEN)
    found = importance.score([hidden], importance.get("taylor"), evidence)["hidden"].double()
    losses = []
    for batch in prompts:
        logits = model(batch).logits
        losses += [
            torch.nn.functional.cross_entropy(row[:-1], ids[1:], reduction="none") for row, ids in zip(logits, batch)
        ]
    torch.cat(losses).mean().backward()
    absolute = signed = 0
    for name, parameter in model.named_parameters():  # a tied tensor has one name
        product = parameter.detach() * parameter.grad
        if product.dim() == 2 and name.rsplit(".", 2)[-2] in ("o_proj", "down_proj"):
            product = product.T
        product = product.view(-1, 48)
        absolute, signed = absolute + product.abs().sum(0), signed + product.sum(0)
    expected = absolute if taylor == "param_first" else signed.abs()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * absolute.max().item())


# Widths: neurons cost 3·hidden parameters, heads 4·head_dim·hidden


def ledger_of(**values) -> Ledger:
    model = meta_model(AutoConfig.for_model("llama", **{"vocab_size": 16, **values}))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return Ledger(shapes, tuple(trace_groups(model)), widths_of(model.config), model.config.num_hidden_layers)


@pytest.fixture(scope="module")
def llama_2_7b():
    """Attention 4·4096² = 67,108,864 and MLP 3·4096·11008 = 135,266,304: 202,375,168 a layer; two norms: 8192."""
    return ledger_of(
        hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_hidden_layers=32, vocab_size=32000
    )


@pytest.fixture(scope="module")
def grouped():
    """A quarter of Llama-3-8B's layers. Attention 2·4096² + 2·4096·1024 = 41,943,040, MLP 3·4096·14336 = 176,160,768:
    218,103,808 a layer."""
    return ledger_of(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=8
    )


@pytest.fixture(scope="module")
def toy():
    """Two layers of two heads and four neurons. A neuron costs 3·4 = 12, a head 4·6·4 = 96: eight neurons.
    Everything: 2·(2·8 + 4) = 40 neurons."""
    return ledger_of(
        hidden_size=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=4,
        num_hidden_layers=2,
    )


@pytest.fixture(scope="module")
def hundred():
    """Two layers of 92 neurons of 24 parameters and two heads of 4·3·8 = 96, as much as four: 100 neurons a layer."""
    return ledger_of(
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=3,
        intermediate_size=92,
        num_hidden_layers=2,
    )


def heads_and_neurons(layers) -> list[tuple[int, int]]:
    return [(layer.num_attention_heads, layer.intermediate_size) for layer in layers]


def test_costs(llama_2_7b, grouped):
    before = llama_2_7b.before
    head = llama_2_7b.cost(before, num_attention_heads=1, num_key_value_heads=1)
    neuron = llama_2_7b.cost(before, intermediate_size=1)
    assert (head, neuron) == (4 * 128 * 4096, 3 * 4096)
    assert head * 3 == neuron * 512
    assert llama_2_7b.decoder(llama_2_7b.all_layers(before)) == 32 * 202_375_168
    assert llama_2_7b.of_layer_0() == 202_383_360
    assert llama_2_7b.total(llama_2_7b.all_layers(before)) == 6_738_415_616  # the published size
    # four query heads with their rows of q and columns of o, one key and one value head: 10·128 rows of 4096
    assert grouped.cost(grouped.before, num_attention_heads=4, num_key_value_heads=1) == 10 * 128 * 4096
    assert grouped.decoder(grouped.all_layers(grouped.before)) == 8 * 218_103_808


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
    assert after == Widths(4096, 32 - heads, 32 - heads, 11008 - neurons, 128)


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
    ledger = ledger_of(
        hidden_size=24, num_attention_heads=8, num_key_value_heads=8, head_dim=4, intermediate_size=100,
        num_hidden_layers=3,
    )  # fmt: skip
    assert widths_by_iteration(ledger, iteration) == Widths(24, 8 - heads, 8 - heads, 100 - neurons, 4)


def test_amp_iteration_leaves_one_head(toy):
    """ρ' = (240 + 8)/480 = 0.51667 of two heads, then of one: the head stays, neurons make up for it."""
    assert heads_and_neurons([widths_by_iteration(toy, 1)]) == [(1, 2)]  # 1.0333 - 1 + 2.0667 = 2.1
    one_head = ledger_of(
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
    assert widths_by_iteration(grouped, 3) == Widths(4096, 16, 8, 14336 - 5372, 128)


def test_amp_iteration_of_all_layers(toy):
    with pytest.raises(PlanError, match="leaves nothing"):
        widths_by_iteration(toy, 2)


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
    assert after == Widths(4096, 32 - heads, 32 - heads, 11008 - neurons, 128)


def test_ul_um_with_grouped_queries(grouped):
    """⌊0.6·4⌋ = 2 of each group's four; ⌊0.6·14336⌋ = ⌊8601.6⌋."""
    assert widths_by_structure(grouped, "UL-UM", 0.6, (HEADS, MLP), 0) == Widths(4096, 16, 8, 14336 - 8601, 128)


def test_ul_um_of_one_kind(llama_2_7b):
    assert widths_by_structure(llama_2_7b, "UL-UM", 0.5, (MLP,), 0) == Widths(4096, 32, 32, 5504, 128)
    assert widths_by_structure(llama_2_7b, "UL-UM", 0.5, (HEADS,), 0) == Widths(4096, 16, 16, 11008, 128)


@pytest.mark.parametrize("structure", ["UL-UM", "UL-MM"])
def test_floor_is_of_the_ratio_that_was_written(hundred, structure):
    """In binary 0.58·100 is 57.99…, 0.41·2400 is 983.99…; the whole numbers are meant."""
    if structure == "UL-UM":
        big = ledger_of(
            hidden_size=8, num_attention_heads=2, num_key_value_heads=2, head_dim=3, intermediate_size=100,
            num_hidden_layers=1,
        )  # fmt: skip
        assert widths_by_structure(big, structure, 0.58, (MLP,), 0).intermediate_size == 42
    else:
        assert widths_by_structure(hundred, structure, 0.41, (HEADS, MLP), 0).intermediate_size == 92 - 41


def test_ul_mm(llama_2_7b):
    """100 // 32 = 3 heads a layer; 0.2·202,375,168 - 3·2,097,152 = 34,183,577.6, by 12,288: 2781.87 neurons."""
    after = widths_by_structure(llama_2_7b, "UL-MM", 0.2, (HEADS, MLP), 100)
    assert after == Widths(4096, 29, 29, 11008 - 2781, 128)


def test_ul_mm_with_grouped_queries(grouped):
    """130 // 8 = 16 heads a layer, two in each group, rows of q and columns of o: 16·2·128·4096 = 16,777,216;
    0.25·218,103,808 - that = 37,748,736, by 12,288: exactly 3072."""
    after = widths_by_structure(grouped, "UL-MM", 0.25, (HEADS, MLP), 130)
    assert after == Widths(4096, 16, 8, 14336 - 3072, 128)


def test_param_ratio_by_hand(llama_2_7b):
    """⌊6.4⌉ = 6 heads; 0.2·202,375,168 - 6·2,097,152 = 27,892,121.6, by 12,288: 2269.87 → 2270 neurons."""
    goal = 0.8 * 32 * 202_375_168
    after = widths_by_parameters(llama_2_7b, (HEADS, MLP), goal, whole=False, legal=lambda widths: True)
    assert after == Widths(4096, 26, 26, 11008 - 2270, 128)


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8])
@pytest.mark.parametrize("which", ["llama_2_7b", "grouped"])
def test_param_ratio_is_met(request, which, ratio):
    """Within 1 %, by the formula for a layer's parameters; and nearer than one neuron in every layer."""
    ledger = request.getfixturevalue(which)
    layers, before = ledger.num_layers, ledger.before
    options = SimpleNamespace(target_params=None, iteration=None, param_ratio=ratio, pruning_ratio=None)
    assert share_of(ledger, options) == ratio

    def parameters(w: Widths) -> int:
        return layers * 4096 * (128 * 2 * (w.num_attention_heads + w.num_key_value_heads) + 3 * w.intermediate_size)

    goal = (1 - ratio) * parameters(before)
    after = widths_by_parameters(ledger, (HEADS, MLP), goal, whole=False, legal=lambda widths: True)
    assert abs(parameters(after) - goal) <= 0.01 * parameters(before)
    assert abs(parameters(after) - goal) <= layers * 3 * 4096 / 2
    assert after.num_attention_heads < 32 or ratio < 0.2


@pytest.mark.parametrize("kind", ["heads", "mlp"])
@pytest.mark.parametrize(
    "options",
    [
        {"pruning_ratio": 0.25, "structure": "UL-UM"},
        {"pruning_ratio": 0.25, "structure": "UL-MM", "remove_heads": 16},
        {"iteration": 1},
    ],
)
def test_what_prune_does_not_name_stays(kind, options):
    """Or a budget that cannot go without it is refused."""
    try:
        plan = run(Options(model="demo", importance="mag_sp", prune=kind, dry_run=True, **options))["plan"]
    except PrunerError:
        return
    for layer in plan.after:
        assert (layer.num_attention_heads < plan.before.num_attention_heads) == (kind == "heads")
        assert (layer.intermediate_size < plan.before.intermediate_size) == (kind == "mlp")


# Adaptive widths


def test_standardised():
    """Columns 1 9 16 0: mean 6.5, deviations -5.5 2.5 9.5 -6.5, squares 169 in all, by 3: std 13/√3. A head has two."""
    unit = 1.5 * math.sqrt(3) / 13
    assert_close(standardised(torch.tensor([1.0, 9.0, 16.0, 0.0]), 2), [-unit, unit])
    assert_close(standardised(torch.tensor([1.0, 3.0]), 2), [-1 / math.sqrt(2), 1 / math.sqrt(2)])
    assert_close(standardised(torch.tensor([7.0, 7.0, 7.0]), 3), [0, 0, 0])


SCORES = {
    "layers.0.heads": torch.tensor([1.0, 3.0]),  # ∓0.7071
    "layers.1.heads": torch.tensor([1.0, 9.0, 16.0, 0.0]),  # ∓0.1999
    "layers.0.mlp": torch.tensor([1.0, 2.0, 3.0, 4.0]),  # std 1.291: -1.162 -0.387 0.387 1.162
    "layers.1.mlp": torch.tensor([0.0, 0.0, 0.0, 10.0]),  # std 5: -0.5 -0.5 -0.5 1.5
}
# The best of every layer and kind, 2·8 + 2·1 = 18, stay. Then, with the cost in neurons that has been kept:
#   layer 0 neuron 2 (19), layer 1 head 0 (27), layer 0 neuron 1 (28), layer 1 neurons 0 1 2 (29 30 31),
#   layer 0 head 0 (39), layer 0 neuron 0 (40)


def allocated(ledger: Ledger, share: float, structure: str, remove_heads: int = 0, scores=SCORES):
    groups = adaptive_groups(ledger.groups, ledger.before, (HEADS, MLP))
    return allocate(ledger, groups, scores, share, structure, remove_heads)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.25, [(1, 3), (2, 3)]),  # 30 are left: exactly
        (0.45, [(1, 2), (1, 1)]),  # 22 are left: 19 is nearer than 27
        (0.4, [(1, 2), (2, 1)]),  # 24 are left: 27 is nearer than 19
        (0.1, [(2, 3), (2, 4)]),  # 36 are left: 39 is nearer than 31
    ],
)
def test_al_am(toy, share, expected):
    assert heads_and_neurons(allocated(toy, share, "AL-AM")) == expected


def test_al_am_leaves_the_best_unit_of_every_layer_and_kind(toy):
    """Of 40, 16 are left: less than the 18 that stay whatever is asked."""
    assert heads_and_neurons(allocated(toy, 0.6, "AL-AM")) == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("share", "heads", "expected"),
    [
        (0.29, 1, [(1, 3), (2, 2)]),  # 11.6 go, 8 of them the lowest head: ⌊3.6⌋ neurons
        (0.35, 1, [(1, 1), (2, 1)]),  # 14 go: 6 neurons
        (0.45, 2, [(1, 3), (1, 3)]),  # 18 go: 2 neurons
        (0.05, 0, [(2, 3), (2, 3)]),  # 2 go
    ],
)
def test_al_mm(toy, share, heads, expected):
    assert heads_and_neurons(allocated(toy, share, "AL-MM", heads)) == expected


def test_al_mm_floor_is_of_the_ratio_that_was_written(hundred):
    """0.41·200 = 82 neurons of both layers; in binary 0.41·4800 is 1967.99…"""
    scores = {f"layers.{layer}.mlp": torch.arange(92.0) for layer in (0, 1)}
    scores |= {f"layers.{layer}.heads": torch.tensor([1.0, 2.0]) for layer in (0, 1)}
    layers = allocated(hundred, 0.41, "AL-MM", 0, scores)
    assert sum(layer.intermediate_size for layer in layers) == 2 * 92 - 82


def test_adaptive_unit_of_grouped_queries_is_the_kv_group():
    """Two kv groups of two heads: q and o have 2·2·4 each, k and v 2·4: 48, as much as four neurons of 12.

    Two layers of 2·4 + 4 = 12. The best stay: 10. Groups 0 of either layer score -0.7071 and -0.1999 as above.
    At 0.25, 18 are left: 10, layer 0 neuron 2 (11), layer 1 group (15), layer 0 neuron 1, layer 1 neurons 0 and 1 (18).
    """
    ledger = ledger_of(
        hidden_size=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2,
        intermediate_size=4,
        num_hidden_layers=2,
    )
    scores = {name.replace("heads", "kv_heads"): values for name, values in SCORES.items()}
    scores["layers.1.kv_heads"] = torch.tensor([1.0, 9.0, 16.0, 0.0])  # a score for each query head
    layers = allocated(ledger, 0.25, "AL-AM", scores=scores)
    assert heads_and_neurons(layers) == [(2, 3), (4, 3)]
    assert [layer.num_key_value_heads for layer in layers] == [1, 2]
    # two query heads are one kv group, 4; of 24·0.25 = 6 two neurons are left to go: layer 0's first, layer 1's last
    layers = allocated(ledger, 0.25, "AL-MM", 2, scores=scores)
    assert [(layer.num_key_value_heads, layer.intermediate_size) for layer in layers] == [(1, 3), (2, 3)]


# Which units stay


def chosen(scores: dict[str, torch.Tensor], criterion: str = "standard", **widths) -> dict[str, list[int]]:
    case = {"hidden_size": 4, "num_attention_heads": 4, "head_dim": 2, "intermediate_size": 3, "num_hidden_layers": 1}
    ledger = ledger_of(**case, num_key_value_heads=2)
    after = Widths(**{**ledger.before.asdict(), **widths})
    ranked = ordered(scores, Options(model="demo", pruning_ratio=0.5, criterion=criterion))
    return choose(ledger.groups, ranked, ledger.before, (after,))


@pytest.mark.parametrize(
    ("criterion", "neurons", "heads"), [("standard", [0, 2], [0, 3]), ("reversed", [1, 2], [1, 2])]
)
def test_standard_removes_the_lowest_and_reversed_the_highest(criterion, neurons, heads):
    """Heads 3 1 | 0 2, in columns of 2 1 | 0 1 | -1 1 | 5 -3: one of each kv group goes."""
    scores = {
        "layers.0.mlp": torch.tensor([3.0, 1.0, 2.0]),
        "layers.0.heads": torch.tensor([2.0, 1.0, 0.0, 1.0, -1.0, 1.0, 5.0, -3.0]),
    }
    kept = chosen(scores, criterion, num_attention_heads=2, intermediate_size=2)
    assert kept["layers.0.mlp"] == neurons
    assert kept["layers.0.heads"] == heads
    assert kept["layers.0.kv_heads"] == [0, 1]


# Compensation


def test_bias_is_what_the_removed_columns_gave_on_average():
    """W_P·x̄_P. Heads, the first goes: (1·2 + 2·1, 1·2 - 2·1) = (4, 0). Neurons, 0 and 2 go: (1·2 + 0·0, 1·2 + 1·0)."""
    heads, neurons = (
        Group("layers.0.heads", HEADS, 0, 2, (Member("o.weight", 1, "linear", 0, 2, 2, reads=True),)),
        Group("layers.0.mlp", MLP, 0, 3, (Member("down.weight", 1, "linear", reads=True),)),
    )
    hidden = Group("hidden", HIDDEN, None, 2, ())
    weights = {"o.weight": WEIGHT, "down.weight": WEIGHT[:, :3]}
    means = {"o.weight": measured().mean, "down.weight": measured().mean[:3]}
    kept = {"hidden": [0, 1], "layers.0.heads": [1], "layers.0.mlp": [1]}
    biases = output_biases([hidden, heads, neurons], SimpleNamespace(kept=kept), weights, means)
    assert {name: bias.tolist() for name, bias in biases.items()} == {"o.bias": [4, 0], "down.bias": [2, 2]}
    kept = {"hidden": [1], "layers.0.heads": [0], "layers.0.mlp": [0, 1, 2]}  # head 1: 1·0 - 4·5
    biases = output_biases([hidden, heads, neurons], SimpleNamespace(kept=kept), weights, means)
    assert {name: bias.tolist() for name, bias in biases.items()} == {"o.bias": [-20], "down.bias": [0]}


# Wanda-sp's order of things


def demo_scores(path, **options) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    run(
        Options(
            model="demo", dtype="float32", nsamples=8, calibration_seq_len=32, eval_data="none", no_save=True,
            scores=str(path), **options,
        )
    )  # fmt: skip
    return load_file(path)


@pytest.mark.parametrize("criterion", ["standard", "reversed"])
def test_wanda_sp_scores_depend_on_what_was_pruned_before(tmp_path, criterion):
    """Nothing comes before the first layer's attention; its MLP is measured before its heads go."""
    options = {"importance": "wanda_sp", "structure": "UL-UM", "criterion": criterion}
    little = demo_scores(tmp_path / "a", pruning_ratio=0.25, **options)
    much = demo_scores(tmp_path / "b", pruning_ratio=0.75, **options)
    names = [name for name in little if name in much and not name.startswith("mean/")]
    assert {"layers.0.heads", "layers.0.mlp", "layers.1.heads", "layers.1.mlp"} <= set(names)
    for name in names:
        assert torch.equal(little[name], much[name]) == name.startswith("layers.0."), name


def test_wanda_sp_is_the_same_after_memory_ran_out(tmp_path, monkeypatch):
    """The second try starts with the model as it was, not with layers silenced by the first."""
    options = {"importance": "wanda_sp", "structure": "UL-UM", "pruning_ratio": 0.5}
    expected = demo_scores(tmp_path / "a", **options)
    own, calls = Inputs.add, []

    def add(self, x):
        calls.append(x)
        if len(calls) == 4:  # in the second layer, one batch a layer
            raise torch.OutOfMemoryError("out of memory")
        own(self, x)

    monkeypatch.setattr(Inputs, "add", add)
    monkeypatch.setattr(calibrate, "TOKENS", {"cpu": 256})
    found = demo_scores(tmp_path / "b", **options)
    assert len(calls) > 8, "the second try has more batches"
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-4 * values.abs().max().item(), msg=name)


# Calibration text


class Letters:
    """A token for each character, its code."""

    def __call__(self, text, verbose=False):
        return {"input_ids": list(map(ord, text))}


@pytest.fixture
def alphabet(tmp_path):
    """Every token tells its place: 0 … 39 from "0" on."""
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(48 + i) for i in range(40)))
    return str(path)


def offsets(path: str, seed: int, count: int = 200, length: int = 8) -> list[int]:
    prompts = data.calibration_prompts(path, count, length, seed, Letters())
    assert len(prompts) == count
    for prompt in prompts:
        assert prompt.dtype == torch.long
        assert prompt.tolist() == list(range(int(prompt[0]), int(prompt[0]) + length)), "a window is one piece"
    return [int(prompt[0]) - 48 for prompt in prompts]


def test_calibration_windows_are_at_random_offsets(alphabet):
    """Any of 40 - 8 + 1 = 33 offsets, so that windows overlap and come in no order; each is missed with p = 0.002."""
    found = offsets(alphabet, seed=0)
    assert min(found) == 0
    assert max(found) == 32
    assert len(set(found)) >= 30
    assert found != sorted(found)
    assert 12 < sum(found) / len(found) < 20
    assert found == offsets(alphabet, seed=0)
    assert found != offsets(alphabet, seed=1)
    assert offsets(alphabet, seed=0, count=3, length=40) == [0, 0, 0]


def test_wikitext2_is_calibrated_on_the_train_split_joined_by_spaces(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return {"text": ["ab", "", "cd"]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (prompt,) = data.calibration_prompts("wikitext2", 1, 6, 0, Letters())
    assert bytes(prompt.tolist()) == b"ab  cd"
    assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "train"})]


def test_alpaca_prompts(tmp_path):
    """Without their answers, an absent input is empty; a random choice, no record twice, cut off at the length."""
    path = tmp_path / "alpaca.json"
    records = [{"instruction": f"Do {i}", "input": "it" * i, "output": "SECRET"} for i in range(9)]
    path.write_text(json.dumps([*records, {"instruction": "Go"}]))
    wanted = {f"Instruction: Do {i}\nInput: {'it' * i}\nResponse:" for i in range(9)}
    wanted.add("Instruction: Go\nInput: \nResponse:")

    def texts(count, length=100, seed=0):
        return ["".join(map(chr, p)) for p in data.calibration_prompts(str(path), count, length, seed, Letters())]

    assert len(texts(10)) == 10
    assert set(texts(10)) == wanted
    assert set(texts(4)) < wanted
    assert len(set(texts(4))) == 4
    assert texts(4) == texts(4)
    assert any(texts(4) != texts(4, seed=seed) for seed in (1, 2, 3))
    assert all(text == "Instruction" for text in texts(3, length=11))


def test_units_of_grouped_queries():
    """A kv group takes its query heads along, a query head leaves keys and values alone."""
    ledger = ledger_of(
        hidden_size=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2,
        intermediate_size=3,
        num_hidden_layers=1,
    )
    found = {
        group.name: {member.parameter.split(".")[-2]: member.width for member in group.members}
        for group in units_of(ledger.groups)
        if group.layer == 0
    }
    assert found["layers.0.heads"] == {"q_proj": 2, "o_proj": 2}
    assert found["layers.0.kv_heads"] == {"q_proj": 4, "o_proj": 4, "k_proj": 2, "v_proj": 2}
    assert found["layers.0.mlp"] == {"gate_proj": 1, "up_proj": 1, "down_proj": 1}
