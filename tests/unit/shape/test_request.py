"""What was asked against what becomes of it: kinds that stay, copies, shares too small, one width for all layers."""

import copy

import pytest
import torch

from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.shape.allocate import uniform
from llm_pruner.shape.request import Budget
from tests.support import tiny
from tests.support.in_memory import prune_model
from tests.support.steps import planned, prompts, pruned
from tests.support.toys import counter_of


@pytest.mark.parametrize("kind", ["heads", "mlp"])
@pytest.mark.parametrize(
    "options",
    [
        {"pruning_ratio": 0.25, "structure": "UL-UM"},
        {"pruning_ratio": 0.25, "structure": "AL-AM"},
        {"param_ratio": 0.11},
        {"param_ratio": 0.11, "structure": "AL-AM"},
    ],
)
def test_what_prune_does_not_name_stays(kind, options):
    _, plan, _ = planned(tiny.model("llama_multi_head"), None, "mag_sp", prune=kind, **options)
    fewer = {axis: any(layer[axis] < plan.before[axis] for layer in plan.after) for axis in (HEADS, MLP)}
    assert fewer == {HEADS: kind == "heads", MLP: kind == "mlp"}


@pytest.mark.parametrize("structure", [None, "UL-UM", "UL-MM", "AL-MM", "AL-AM"])
def test_ratio_zero_is_a_copy_with_any_structure(structure):
    heads = 8 if structure and structure.endswith("MM") else None
    options = {"pruning_ratio": 0.0, "structure": structure, "remove_heads": heads, "compensate": "bias"}
    model = tiny.model("llama")
    expected = tiny.logits(model)
    new = pruned(model, None, "mag_sp", **options)
    assert new.config.model_type == "llama"
    assert torch.equal(tiny.logits(new), expected)


@pytest.mark.parametrize("structure", [None, "AL-AM"])
def test_shares_that_change_nothing(structure):
    with pytest.raises(PlanError, match="`param_ratio` 1e-05 changes nothing; a neuron of one layer is 0.00"):
        planned(tiny.model("llama"), None, "mag_sp", param_ratio=1e-5, structure=structure)


def test_uniform_meets_the_budget_of_the_adaptive_result():
    """A few neurons cannot compensate for half a kv group of few: the number of heads gives way, or it is refused."""
    counter = counter_of(**tiny.GROUPED, head_dim=8, num_hidden_layers=4, vocab_size=96)
    full = counter.everywhere(counter.before)
    layers = (counter.before.but({HEADS: 2, KV_HEADS: 1}), *full[1:])
    after = uniform(counter, layers, lambda widths: True)
    assert len(set(after)) == 1
    assert abs(counter.decoder(after) - counter.decoder(layers)) <= 0.01 * counter.decoder(full)
    with pytest.raises(PlanError, match="leave `uniform` out"):
        uniform(counter, layers, lambda widths: widths[MLP] > 80)


def test_uniform_with_biases_takes_heads_that_the_stock_class_has_with_them():
    """A llama is relabelled where its heads do not divide its hidden size, and with biases it cannot be."""
    model = tiny.model("llama", num_attention_heads=6, num_key_value_heads=6, num_hidden_layers=4)
    options = {"structure": "AL-MM", "remove_heads": 4, "param_ratio": 0.4, "uniform": True}
    assert pruned(copy.deepcopy(model), None, "mag_sp", **options).config.num_attention_heads == 5
    with_biases = pruned(model, None, "mag_sp", compensate="bias", **options)
    assert with_biases.config.model_type == "llama"
    assert 48 % with_biases.config.num_attention_heads == 0


@pytest.mark.parametrize(
    "options",
    [
        {"importance": "wanda_sp", "structure": "UL-UM", "pruning_ratio": 0.5},
        {"importance": "flap", "structure": "AL-AM", "pruning_ratio": 0.4},
    ],
)
def test_a_replayed_plan_compensates_as_the_first_run_did(tmp_path, options):
    """The means behind silenced layers too, where the method measures there."""
    model = tiny.model("llama", num_hidden_layers=4)
    first, plan = prune_model(copy.deepcopy(model), PruneOptions(compensate="bias", **options), prompts())
    plan.save(tmp_path / "plan.json")
    again, _ = prune_model(model, PruneOptions(plan=str(tmp_path / "plan.json")), prompts())
    biases = [p.abs().max() for name, p in first.named_parameters() if name.endswith("down_proj.bias")]
    assert min(biases) > 0
    assert first.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": "x"}, "params: 'x' is not a number of parameters"),
        ({"params": -3}, "params: '-3' is not a number of parameters"),
        ({"memory": "big"}, "memory: 'big' is not a size"),
        ({"iteration": 1.5}, "a budget: iteration: 1.5 must be a whole number of at least 1"),
        ({"param_ratio": "half"}, "param_ratio: 'half' is not a ratio"),
        ({"param_ratio": 0.3, "structure": "UL"}, "a budget: structure: 'UL' must be one of UL-UM"),
        ({"param_ratio": 0.3, "structure": "AL-MM", "remove_heads": "2"}, "a budget: remove_heads: '2' must be"),
        ({"param_ratio": 0.3, "uniform": "no"}, "a budget: uniform: 'no' must be true or false"),
    ],
)
def test_a_budget_checks_its_values(options, message):
    with pytest.raises(UsageError, match=message):
        Budget(**options)
