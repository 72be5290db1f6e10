"""An lm_head of its own where the embeddings were shared: what it computes, what it costs, and when it is tried."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_pruner.methods import reconstruct as module
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS, MLP
from llm_pruner.model.untie import is_tied, untied
from llm_pruner.output.checkpoint import write
from llm_pruner.reconstruction import form_search
from llm_pruner.reconstruction.tokens import split
from tests.support import tiny
from tests.support.budgets import budget_of, candidates, counted, made_up, missed
from tests.support.reconstructing import divergence, fitted_and_held, method_of, prompts

TIED = ("llama_tied", "qwen2", "gemma", "gpt2")


@pytest.mark.parametrize("case", TIED)
def test_it_computes_the_same_and_shares_all_but_the_head(case):
    model = tiny.model(case)
    own = untied(model)
    assert is_tied(model)
    assert not is_tied(own)
    assert not own.config.tie_word_embeddings
    assert model.config.tie_word_embeddings
    assert not own.training
    assert torch.equal(tiny.logits(own), tiny.logits(model))
    head = own.get_output_embeddings().weight
    assert head.data_ptr() != model.get_output_embeddings().weight.data_ptr()
    for name, parameter in model.named_parameters():
        assert own.get_parameter(name).data_ptr() == parameter.data_ptr(), name
    parameters = sum(parameter.numel() for parameter in own.parameters())
    assert parameters == sum(parameter.numel() for parameter in model.parameters()) + head.numel()


def test_the_head_counts():
    """Of the whole model, where embeddings and lm_head are tied; what else shrinks, pays for it."""
    own, _ = counted("llama_tied", tie_word_embeddings=False, intermediate_size=320)
    counter, config = counted("llama_tied", intermediate_size=320)
    budget = budget_of(counter, 0.3, True)
    listed = candidates(counter, config, (HIDDEN, KV_HEADS, HEADS, MLP), budget, made_up(counter), None, own)
    free = [candidate for candidate in listed if candidate.untied]
    assert len({candidate.widths[HIDDEN] for candidate in free}) > 2
    assert len(free) < len(listed)
    for candidate in listed:
        count = own if candidate.untied else counter
        assert missed(count, budget, count.everywhere(candidate.widths)) < 0.005


@pytest.fixture
def only_untied(monkeypatch):
    own = form_search.candidates
    monkeypatch.setattr(
        form_search, "candidates", lambda *arguments: [found for found in own(*arguments) if found.untied]
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("case", ["llama_tied", "qwen2"])
def test_a_model_that_is_untied(case, better, only_untied, monkeypatch, tmp_path):
    """Rebuilt, or by the plain method where that is better, it is a checkpoint like any other."""
    if not better:
        monkeypatch.setattr(module, "baseline", lambda *a, own=module.baseline: replace(own(*a), kl=-1.0))
    given = tiny.model(case, intermediate_size=320)
    dense, total = copy.deepcopy(given), sum(parameter.numel() for parameter in given.parameters())
    result = method_of(given, target_params=str(round(0.8 * total)), prune="hidden,heads,mlp")
    assert result.notes["search"][0]["untied"]
    parameters = sum(parameter.numel() for parameter in result.model.parameters())
    assert parameters == result.plan.parameters_after
    assert parameters == pytest.approx(0.8 * total, rel=0.005) or not better  # the plain method's biases come on top
    assert (result.plan.parameters_before, result.plan.config["tie_word_embeddings"]) == (total, False)
    _, held = fitted_and_held(split(prompts()))
    if better:
        assert result.notes["kl"] == pytest.approx(divergence(dense, result.model, held), rel=1e-3)
    write(result.model, None, tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert not is_tied(loaded)
    assert torch.equal(tiny.logits(loaded.eval()), tiny.logits(result.model))
    assert sum(parameter.numel() for parameter in given.parameters()) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "budget", "tried"),
    [("llama_tied", {"target_params": "0.8"}, True), ("llama_tied", {"param_ratio": 0.2}, False),
     ("llama", {"target_params": "0.8"}, False)],
)  # fmt: skip
def test_it_is_tried_where_a_budget_pays_for_it(case, budget, tried, monkeypatch):
    """A share of attention and MLP says nothing of the embeddings, and without a tie there is none to undo."""
    asked = []
    own = form_search.candidates
    monkeypatch.setattr(form_search, "candidates", lambda space, *a: asked.append(space.untied) or own(space, *a))
    model = tiny.model(case, intermediate_size=320)
    if "target_params" in budget:
        budget = {"target_params": str(round(0.8 * sum(parameter.numel() for parameter in model.parameters())))}
    method_of(model, search_minutes=1e-9, **budget)
    assert [free is not None for free in asked] == [tried]
