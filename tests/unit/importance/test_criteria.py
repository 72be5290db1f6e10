"""Statistics of the inputs and the scores of every criterion, by hand from their formulas."""

import math

import pytest
import torch

from llm_pruner import prune_checkpoint
from llm_pruner.calibration import memory
from llm_pruner.calibration.activations import Inputs, batches_of
from llm_pruner.calibration.gradients import Products, weight_gradient_products
from llm_pruner.calibration.needs import ABSOLUTE, CONTRIBUTION, MOMENTS
from llm_pruner.calibration.statistics import Statistics
from llm_pruner.calibration.weights import Weights
from llm_pruner.config.prune import PruneOptions
from llm_pruner.importance import criterion_of, score
from llm_pruner.importance.selection import unit_scores
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS, MLP
from llm_pruner.model.groups import Group, Member
from llm_pruner.model.trace import trace_groups
from tests.support import tiny
from tests.support.toys import WEIGHT, assert_close, measured

TWO_HEADS = Group("h", HEADS, 0, 2, (Member("w", 1, "linear", 0, 2, 2, reads=True),))
THREE_NEURONS = Group("m", MLP, 0, 3, (Member("w", 1, "linear", reads=True),))


def scored(name: str, group: Group, weight: torch.Tensor = WEIGHT, **options) -> torch.Tensor:
    """One score per unit."""
    columns = group.units * group.members[0].width
    weight = weight.narrow(group.members[0].dim, 0, columns)
    statistics = Statistics(Weights({"w": weight}), {"w": measured(columns)})
    return unit_scores(score([group], criterion_of(name, options), statistics)[group.name], group.units)


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
    assert_close(scored("flap", TWO_HEADS, metrics=metrics), heads)
    assert_close(scored("flap", THREE_NEURONS, metrics=metrics), neurons)


def test_wanda_sp():
    """√20·1, 4·2, 4·½, 10·3½."""
    assert_close(scored("wanda_sp", TWO_HEADS), [math.sqrt(20) + 8, 2 + 35])
    assert_close(scored("wanda_sp", THREE_NEURONS), [math.sqrt(20), 8, 2])


def test_mag_sp():
    """√2, √8, √1, √25."""
    assert_close(scored("mag_sp", TWO_HEADS), [3 * math.sqrt(2), 6])
    assert_close(scored("mag_sp", THREE_NEURONS), [math.sqrt(2), math.sqrt(8), 1])


def test_amp():
    """‖X_h W_hᵀ‖₁ per token. Head 0: (1 1) → 2 | (3 3) → 6, (1 1) → 2, (11 -5) → 16: 2 and 8 by prompt.
    Head 1: (15 -18) → 33 | (15 -22) → 37, 33, 37: 33 and 107/3. Over tokens head 0 would have 6.5."""
    assert_close(scored("amp", TWO_HEADS), [(2 + 8) / 2, (33 + 107 / 3) / 2])
    assert_close(scored("amp", THREE_NEURONS), [5 / 3, 2 / 3, 2])


def test_a_kv_group_has_the_sum_of_its_heads():
    group = Group("kv", KV_HEADS, 0, 1, (Member("w", 1, "linear", 0, 4, 4, reads=True),))
    assert_close(scored("amp", group), [5 + (33 + 107 / 3) / 2])
    assert_close(scored("flap", group, metrics="IFV"), [26])


@pytest.mark.parametrize("name", ["flap", "wanda_sp", "mag_sp"])
def test_weights_stored_the_other_way_round(name):
    """gpt2 holds its projections as [in, out]."""
    turned = Group("h", HEADS, 0, 2, (Member("w", 0, "linear", 0, 2, 2, reads=True),))
    torch.testing.assert_close(scored(name, turned, WEIGHT.T.contiguous()), scored(name, TWO_HEADS))


def test_absolute_means_in_pieces_are_those_of_the_whole(monkeypatch):
    from llm_pruner.calibration import weights

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
        found_by = score([group], criterion_of("taylor", {"taylor": taylor}), Statistics(products=found))
        assert_close(found_by["h"], expected)


@pytest.mark.parametrize("taylor", ["param_first", "vectorize"])
def test_taylor_of_a_tied_channel_counts_the_shared_tensor_once(taylor):
    """Channel: its column in the embeddings, q, k, v, gate and up, its row in o and down, its norm weights."""
    model = tiny.model("llama_tied", dtype=torch.float64)
    prompts = [tiny.tokens(rows=2, length=9, seed=3), tiny.tokens(rows=1, length=5, seed=4)]
    statistics = Statistics(products=weight_gradient_products(model, prompts))
    hidden = next(group for group in trace_groups(model) if group.axis == HIDDEN)
    found = score([hidden], criterion_of("taylor", {"taylor": taylor}), statistics)["hidden"].double()
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


# Wanda-sp's order of things


def demo_scores(path, **options) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    prune_checkpoint(
        PruneOptions(
            model="demo", dtype="float32", nsamples=8, calibration_seq_len=32, eval_data="none", no_save=True,
            scores=str(path), **options,
        )
    )  # fmt: skip
    return load_file(path)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["standard", "reversed"])
def test_wanda_sp_scores_depend_on_what_was_pruned_before(tmp_path, order):
    """Nothing comes before the first layer's attention; its MLP is measured before its heads go."""
    options = {"importance": "wanda_sp", "structure": "UL-UM", "order": order}
    little = demo_scores(tmp_path / "a", pruning_ratio=0.25, **options)
    much = demo_scores(tmp_path / "b", pruning_ratio=0.75, **options)
    names = [name for name in little if name in much and not name.startswith("mean/")]
    assert {"layers.0.heads", "layers.0.mlp", "layers.1.heads", "layers.1.mlp"} <= set(names)
    for name in names:
        assert torch.equal(little[name], much[name]) == name.startswith("layers.0."), name


@pytest.mark.slow
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
    monkeypatch.setattr(memory, "TOKENS", {"cpu": 256})
    found = demo_scores(tmp_path / "b", **options)
    assert len(calls) > 8, "the second try has more batches"
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-4 * values.abs().max().item(), msg=name)
