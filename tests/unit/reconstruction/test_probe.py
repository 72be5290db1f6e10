"""Shapes measured on the dense model: equal to a model that is cut and fitted so, and the model is left as it was."""

import pytest
import torch

from llm_pruner.model.axes import KV_HEADS, MLP, heads_per_group, with_heads
from llm_pruner.model.families import widths_of
from llm_pruner.model.trace import trace_groups
from llm_pruner.reconstruction.layers import affine
from llm_pruner.reconstruction.probe import Probe
from llm_pruner.reconstruction.survey import survey
from tests.support import tiny
from tests.support.reconstructing import divergence

CASES = ["llama", "llama_multi_head", "gemma3_text", "phi3", "gpt2", "gpt_neox"]


def probed(case: str, **changes):
    """(model, its widths, survey, probe, held-out prompts)."""
    model, held = tiny.model(case, **changes), tiny.tokens(6, 16, seed=1)
    before = widths_of(model.config)
    found = survey(model, trace_groups(model), [tiny.tokens(24, 16)], before)
    return model, before, found, Probe(model, found, [held], before), held


@pytest.mark.parametrize("case", CASES)
def test_nothing_changed_is_no_divergence_and_more_is_more(case):
    model, before, _, probe, _ = probed(case)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert probe.kl({}) == pytest.approx(0, abs=1e-6)
    steps = [before.but({MLP: before[MLP] * part // 4}) for part in (3, 2, 1)]
    found = [probe.kl({1: widths}) for widths in steps]
    assert 0 < found[0] < found[1] < found[2]
    assert probe.kl({0: steps[1], 1: steps[1]}) > found[1]
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("case", ["llama", "gpt_neox"])
def test_it_is_the_divergence_of_the_model_with_these_projections(case):
    """Of neurons and heads, and without a layer."""
    model, before, found, probe, held = probed(case)
    fewer = with_heads(before.but({MLP: before[MLP] // 2}), before[KV_HEADS] // 2, heads_per_group(before))
    measured = probe.kl({1: fewer})
    other = tiny.model(case)
    layer = (other.model.layers if case == "llama" else other.gpt_neox.layers)[1]
    for regression in found.regressions[1]:
        projection = layer.get_submodule(regression.projection)
        weight = regression.weight(affine(projection), fewer)
        assert len(weight.any(0).nonzero()) < weight.shape[1]
        projection.weight.data = weight[:, : projection.in_features].contiguous()
        if projection.bias is not None:
            projection.bias.data = weight[:, -1].contiguous()
    assert measured == pytest.approx(divergence(model, other, [held]), rel=1e-4)


@pytest.mark.parametrize(
    ("count", "length", "tokens", "shape"),
    [(6, 16, 48, (4, 12)), (6, 16, 2048, (6, 16)), (2, 16, 48, (2, 12)), (6, 4, 16, (4, 4)), (6, 2, 16, (6, 2))],
)
def test_it_measures_the_beginnings_of_several_prompts(count, length, tokens, shape):
    """One prompt may be unlike all others."""
    model, before, found, _, _ = probed("llama")
    held = tiny.tokens(count, length, seed=1)
    probe = Probe(model, found, [held[:1], held[1:]], before, tokens)
    assert torch.equal(torch.cat(probe.prompts), held[: shape[0], : shape[1]])


def test_a_layer_may_go():
    from llm_pruner.model.depth import make_shallow

    model, _, _, probe, held = probed("llama", num_hidden_layers=3)
    other = tiny.model("llama", num_hidden_layers=3)
    make_shallow(other, (0, 2))
    assert probe.kl({}, stay=(0, 2)) == pytest.approx(divergence(model, other, [held]), rel=1e-4)


def test_models_whose_equations_would_be_too_large_keep_none(monkeypatch):
    from llm_pruner.reconstruction import survey as module

    monkeypatch.setattr(module, "LARGEST", 1000)
    model = tiny.model("llama")
    found = survey(model, trace_groups(model), [tiny.tokens(8, 16)], widths_of(model.config))
    assert not found.regressions
    assert len(found.costs.neurons) == len(found.costs.heads) == 2
