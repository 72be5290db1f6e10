"""Pruning a model in memory."""

import pytest
import torch

from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.methods import Reconstruct, ScoreAndCut
from llm_pruner.pruning import prune
from llm_pruner.shape.request import Budget, Ratio, Replay, Target
from tests.support import tiny
from tests.support.in_memory import prune_model
from tests.support.reconstructing import method_of, prompts


def test_it_is_what_prune_model_does_with_text_alone():
    """In the mode that the model was in."""
    expected = method_of(tiny.model("llama"), prune="mlp=0.3").model.state_dict()
    new, plan = prune_model(tiny.model("llama").train(), PruneOptions(prune="mlp=0.3", epochs=0), prompts())
    assert (plan.importance, new.training) == ("reconstruct", True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in new.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_target_memory_is_in_bytes_of_the_models_dtype(dtype):
    model = tiny.model("llama", dtype=dtype)
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    _, plan = prune_model(model, PruneOptions(importance="mag_sp", target_memory=f"{0.8 * before / 1000:.3f}kB"))
    assert plan.bytes_after == pytest.approx(0.8 * before, abs=0.01 * before)


@pytest.mark.parametrize("given", [None, []])
def test_without_prompts_units_are_chosen_by_magnitude(given):
    model = tiny.model("llama")
    new, plan = prune(model, Ratio({"mlp": 0.5}), prompts=given)
    assert (plan.importance, plan.seed, plan.compensate) == ("magnitude", 0, "none")
    assert new.config.intermediate_size == 40
    assert sum(parameter.numel() for parameter in model.parameters()) == 0, "it gave up its tensors"


def test_a_replay_is_cut_as_it_says_with_prompts_too():
    _, plan = prune(tiny.model("llama"), Ratio({"mlp": 0.5}), ScoreAndCut(order="reversed"))
    again = prune(tiny.model("llama"), Replay(plan), prompts=prompts())
    assert (again.plan.order, again.plan.kept) == ("reversed", plan.kept)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_stays(training):
    new = prune(tiny.model("llama").train(training), Ratio({"mlp": 0.5})).model
    assert {module.training for module in new.modules()} == {training}


@pytest.mark.parametrize("method", [ScoreAndCut("flap", compensate="bias"), Reconstruct()])
def test_nothing_to_remove_makes_a_copy_without_text(method):
    expected = tiny.logits(tiny.model("llama"))
    new, plan = prune(tiny.model("llama"), Ratio(0.0), method)
    assert plan.before == plan.after[0]
    assert torch.equal(tiny.logits(new), expected)


def test_the_config_that_was_given_stays_as_it_is():
    model = tiny.model("llama", dtype=torch.bfloat16)
    config, before = model.config, model.config.to_dict()
    prune(model, Ratio({"mlp": 0.5}))
    assert config.to_dict() == before


@pytest.mark.parametrize(
    ("how_much", "method", "error", "message"),
    [
        (Ratio({"mlp": 0.5}), ScoreAndCut("flap"), UsageError, "calibration needs prompts"),
        (Ratio({"mlp": 0.5}), Reconstruct(), UsageError, "method reconstruct needs calibration prompts"),
        (Budget(param_ratio=0.999), None, PlanError, "cannot meet the budget"),
        (Target("hidden_size=49"), None, PlanError, "hidden_size"),
    ],
)
def test_what_cannot_be_done_is_said(how_much, method, error, message):
    with pytest.raises(error, match=message):
        prune(tiny.model("llama"), how_much, method)
