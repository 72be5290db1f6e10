"""Every method on every family: pruned, saved, reloaded without llm_pruner, generating; or refused with a reason."""

import copy

import pytest
import torch

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from tests.support import tiny
from tests.support.fresh import assert_same, reload_in_a_fresh_process
from tests.support.recipes import METHODS, deep
from tests.support.steps import planned, pruned

PAIRS = [(case, name) for case in tiny.CASES for name in METHODS]
MOVES_HEADS_ALONE = [name for name in METHODS if not name.startswith("taylor")]  # with the hidden size left as it is
REFUSED = [(case, name) for case in tiny.DERIVED for name in MOVES_HEADS_ALONE]
NEURONS_ONLY = [pair for pair in REFUSED if "iteration" not in METHODS[pair[1]] and "MM" not in str(METHODS[pair[1]])]


def cut(case: str, name: str, **changes):
    return pruned(deep(case), None, **{**METHODS[name], **changes})


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    models = {pair: cut(*pair) for pair in PAIRS if pair not in REFUSED}
    models |= {(case, f"{name}, mlp"): cut(case, name, prune="mlp") for case, name in NEURONS_ONLY}
    return reload_in_a_fresh_process(models, tmp_path_factory.mktemp("families"))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), [pair for pair in PAIRS if pair not in REFUSED])
def test_reloads_and_generates(reloaded, case, name):
    assert_same(*reloaded[case, name])


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), NEURONS_ONLY)
def test_neurons_alone_where_heads_cannot(reloaded, case, name):
    assert_same(*reloaded[case, f"{name}, mlp"])


@pytest.mark.parametrize(("case", "name"), REFUSED)
def test_refused_with_the_reason(case, name):
    with pytest.raises(PlanError, match="derives head_dim from hidden_size / num_attention_heads"):
        cut(case, name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "name"),
    [
        (case, name)
        for case in tiny.CASES
        for name in ("amp by parameters", "flap", "flap UL-UM", "wanda_sp", "taylor")
        if case not in tiny.DERIVED or (case, name) in NEURONS_ONLY
    ],
)
def test_masked_and_cut_model_agree(case, name):
    """Up to rounding; where hidden channels go too, only with a negligible eps, see test_surgery.py."""
    changes = {"prune": "mlp"} if case in tiny.DERIVED else {}
    model = deep(case, **({} if case in tiny.DERIVED else {"rms_norm_eps": 1e-12}))
    options = {**METHODS[name], **changes}
    masked = pruned(copy.deepcopy(model), None, mask_only=True, **options)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert shapes == {name: p.shape for name, p in masked.named_parameters() if name in shapes}
    small = pruned(model, None, **options)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in masked.parameters())
    torch.testing.assert_close(tiny.logits(masked), tiny.logits(small), atol=1e-4, rtol=1e-4)


def test_masking_hidden_channels_under_layernorm_is_refused():
    with pytest.raises(PlanError, match="a LayerNorm over zeros"):
        pruned(tiny.model("gpt2"), {"hidden": 0.5, "heads": 0.5}, mask_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in tiny.CASES if case not in tiny.DERIVED])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_budget_is_met(case, share):
    """±1 % of the attention and MLP parameters, uniform or adaptive; every layer keeps a group and a neuron."""
    adaptive = {"structure": "AL-AM"}
    for options in ({}, {**adaptive, "uniform": True}, adaptive) if share < 0.7 else (adaptive,):
        _, plan, _ = planned(deep(case), None, "mag_sp", param_ratio=share, **options)
        assert plan.removed()["decoder"] == pytest.approx(share, abs=0.01)
        assert all(min(layer[KV_HEADS], layer[MLP]) >= 1 for layer in plan.after)
        assert all(layer[HEADS] % layer[KV_HEADS] == 0 for layer in plan.after)
        if options.get("uniform") or not options:
            assert len(set(plan.after)) == 1


@pytest.mark.parametrize("case", ["llama", "qwen2", "phi3", "gemma3_text"])
def test_target_params(case):
    model = tiny.model(case)
    parameters = sum(p.numel() for p in model.parameters())
    goal = round(0.8 * parameters)
    for prune in (None, "hidden,heads,mlp"):
        _, plan, _ = planned(tiny.model(case), None, "magnitude", target_params=str(goal), prune=prune)
        assert plan.parameters_after == pytest.approx(goal, abs=0.01 * parameters)


def test_adaptive_layers_differ():
    """Otherwise the tests above would say nothing about layers of different widths."""
    _, plan, config = planned(deep("llama"), None, "flap", structure="AL-AM", pruning_ratio=0.4)
    assert len(set(plan.after)) > 1
    assert config.model_type == "pruned_llama"


@pytest.mark.parametrize(("case", "stock"), [("llama", True), ("gpt2", True), ("gpt_neox", True), ("qwen3", False)])
def test_biases_stay_stock_where_the_class_has_them(case, stock):
    prune = "mlp" if case in tiny.DERIVED else None
    new = cut(case, "flap UL-UM", prune=prune)
    assert new.config.model_type == ("" if stock else "pruned_") + case
    last = [p for name, p in new.named_parameters() if name.endswith(("down_proj.bias", "c_proj.bias", "4h_to_h.bias"))]
    assert len(last) >= 4
    assert all(p.abs().max() > 0 for p in last)
