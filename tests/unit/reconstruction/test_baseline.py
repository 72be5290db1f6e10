"""The plain method that a reconstruction is compared with, and what is kept where the reconstruction is worse."""

import copy
import math

import pytest
import torch

from llm_pruner.calibration.layerwise import walk
from llm_pruner.config.prune import PruneOptions
from llm_pruner.methods import reconstruct as module
from llm_pruner.model.families import widths_of
from llm_pruner.reconstruction.baseline import baseline
from llm_pruner.reconstruction.tokens import split
from tests.support import tiny
from tests.support.in_memory import prune_model
from tests.support.reconstructing import (
    calibration,
    divergence,
    fitted_and_held,
    method_of,
    planned,
    prompts,
    ratios_of,
)

HIDDEN = {"hidden": 1 / 3}
FLAP = {
    "llama": {"heads": 0.5, "mlp": 0.3}, "llama_multi_head": {"heads": 0.5, "mlp": 0.3}, "qwen2": {"kv_heads": 0.5},
    "gemma3_text": {"heads": 0.5, "mlp": 0.3}, "gpt2": {"mlp": 0.3}, "gpt_neox": {"mlp": 0.3},
}  # fmt: skip
MAGNITUDE = {
    "llama": {**HIDDEN, "mlp": 0.5}, "qwen2": HIDDEN, "llama_multi_head": HIDDEN,
    "gemma": {**tiny.ALL, "kv_heads": 0.5}, "gemma_untied": HIDDEN,
}  # fmt: skip
CASES = [*(("flap", *pair) for pair in FLAP.items()), *(("magnitude", *pair) for pair in MAGNITUDE.items())]


def without_eps(case: str):
    """eps is not the same beside the mean square of fewer channels."""
    return tiny.model(case, **({} if case in tiny.DERIVED else {"rms_norm_eps": 1e-12}))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "case", "ratios"), CASES)
def test_the_baseline_is_the_model_that_would_be_cut(name, case, ratios):
    """The same units, and the same KL on the held-out tokens, although nothing is cut."""
    model, tokens = without_eps(case), calibration()
    groups, plan, _ = planned(model, ratios)
    state = copy.deepcopy(model.state_dict())
    for layer in walk(model, tokens.batches):
        layer.run()
    found = baseline(model, groups, plan.after, tokens, layer.outputs)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert (found.criterion, bool(found.means)) == (name, name == "flap")
    prompts, held = fitted_and_held(tokens)
    options = PruneOptions(
        model="tiny", importance=name, compensate="bias" if found.means else "none", prune=ratios_of(ratios)
    )  # fmt: skip
    cut, done = prune_model(copy.deepcopy(model), options, prompts)
    assert done.kept == found.kept
    assert found.kl == pytest.approx(divergence(model, cut, held), rel=1e-4)
    assert found.kl > 0.01


def test_nothing_that_goes_costs_nothing():
    model, tokens = tiny.model("llama"), calibration()
    groups, plan, _ = planned(model, widths_of(model.config))
    for layer in walk(model, tokens.batches):
        layer.run()
    assert baseline(model, groups, plan.after, tokens, layer.outputs).kl == pytest.approx(0, abs=1e-9)


@pytest.fixture
def spoiled(monkeypatch):
    """Makes every reconstruction's KL what the test says."""

    def spoil(kl: float) -> None:
        own = module.reconstruct

        def reconstruct(*arguments, **options):
            done = own(*arguments, **options)
            done.kl = kl
            return done

        monkeypatch.setattr(module, "reconstruct", reconstruct)

    return spoil


@pytest.mark.slow
@pytest.mark.parametrize("kl", [1e9, math.nan, math.inf])
@pytest.mark.parametrize(("name", "ratios"), [("flap", {"heads": 0.5, "mlp": 0.3}), ("magnitude", HIDDEN)])
def test_a_reconstruction_that_is_worse_is_not_kept(spoiled, name, ratios, kl):
    """What is kept is the plain method's model, and it is said."""
    spoiled(kl)
    dense, said = tiny.model("llama"), []
    fitted, held = fitted_and_held(split(prompts()))
    options = PruneOptions(
        model="tiny", importance=name, compensate="bias" if name == "flap" else "none", prune=ratios_of(ratios)
    )  # fmt: skip
    expected, plan = prune_model(copy.deepcopy(dense), options, fitted)
    result = method_of(copy.deepcopy(dense), said, prune=ratios_of(ratios))
    assert f"note: plain {name} is better here and is kept" in said
    assert (result.plan.importance, result.plan.compensate) == (name, options.compensate)
    assert result.plan.kept == plan.kept
    assert result.plan.parameters_after == sum(parameter.numel() for parameter in result.model.parameters())
    assert {**result.config.to_dict(), "dtype": "float32"} == {**expected.config.to_dict(), "dtype": "float32"}
    wanted = expected.state_dict()
    for key, tensor in result.model.state_dict().items():
        torch.testing.assert_close(tensor, wanted[key], msg=key)
    assert result.notes["kl_plain"][name] == pytest.approx(divergence(dense, result.model, held), rel=1e-3)
