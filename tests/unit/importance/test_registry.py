"""Scores: by hand, against torch-pruning's own, and for every criterion on every family."""

from dataclasses import dataclass

import pytest
import torch

from llm_pruner.calibration.statistics import Statistics
from llm_pruner.calibration.weights import Weights
from llm_pruner.errors import RunError, UsageError
from llm_pruner.importance import CRITERIA, Criterion, criterion_of, score
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS, MLP
from llm_pruner.model.groups import Group, Member, attention_units
from llm_pruner.model.trace import trace_groups
from tests.support import tiny
from tests.support.steps import planned


def scores_of(groups, parameters, name="magnitude", seed=0):
    return score(groups, criterion_of(name, usual={"seed": seed}), Statistics(Weights(parameters)))


def test_magnitude_by_hand():
    """Two neurons: up rows, down columns, a LayerNorm weight; bias, embedding and RMSNorm do not count."""
    parameters = {
        "up": torch.tensor([[1.0, 2.0], [0.0, 3.0]]),  # rows: 5, 9
        "down": torch.tensor([[1.0, 1.0], [2.0, 0.0], [0.0, 0.0]]),  # columns: 5, 1
        "ln": torch.tensor([2.0, 1.0]),  # 4, 1
        "bias": torch.tensor([100.0, 100.0]),
        "embed": torch.full((3, 2), 100.0),
        "rms": torch.tensor([100.0, 100.0]),
    }
    members = (
        Member("up", 0, "linear"), Member("down", 1, "linear"), Member("ln", 0, "layernorm"),
        Member("bias", 0, "bias"), Member("embed", 1, "embedding"), Member("rms", 0, "rmsnorm"),
    )  # fmt: skip
    scores = scores_of([Group("g", MLP, 0, 2, members)], parameters)["g"]
    torch.testing.assert_close(scores, torch.tensor([(5 + 5 + 4) / 3, (9 + 1 + 1) / 3]))


def test_head_score_is_the_mean_of_its_channels():
    """Two heads of two rows in q; k interleaved with it as a fused per-head layout has it."""
    weight = torch.tensor([[1.0], [2.0], [10.0], [3.0], [4.0], [20.0]])  # q0 q0 k0 q1 q1 k1
    members = (Member("qk", 0, "linear", 0, 3, 2), Member("qk", 0, "linear", 2, 3, 1))
    scores = scores_of([Group("h", HEADS, 0, 2, members)], {"qk": weight})["h"]
    torch.testing.assert_close(scores, torch.tensor([((1 + 4) / 2 + 100) / 2, ((9 + 16) / 2 + 400) / 2]))


def test_magnitude_is_torch_prunings():
    """On a multi-head model, group by group, what GroupMagnitudeImportance(p=2, "mean") says, and in float64."""
    import torch_pruning as tp
    from torch_pruning.dependency import DependencyGraph

    from llm_pruner.model.families import family_of
    from llm_pruner.model.proxy import replace_attention

    model = tiny.model("llama_multi_head", attention_bias=False, mlp_bias=False)
    groups = {g.name: g for g in trace_groups(model)}
    wanted = [groups["hidden"], groups["layers.1.mlp"]]
    wanted.append(attention_units(groups["layers.0.heads"], groups["layers.0.kv_heads"], HEADS))
    ours = scores_of(wanted, dict(model.named_parameters()))
    replace_attention(model, family_of("llama"))
    graph = DependencyGraph()
    graph.build_dependency(
        model,
        {"input_ids": tiny.tokens(1, 3), "use_cache": False},
        output_transform=lambda o: o.logits,
        verbose=False,
        ignored_params=[p for p in model.parameters() if p.dim() == 1],
    )
    theirs = tp.importance.GroupMagnitudeImportance(p=2, group_reduction="mean", normalizer=None)
    roots = {
        "hidden": (model.model.layers[0].mlp.down_proj, tp.prune_linear_out_channels, 48),
        "layers.1.mlp": (model.model.layers[1].mlp.gate_proj, tp.prune_linear_out_channels, 80),
        "layers.0.heads": (model.model.layers[0].self_attn.q_proj, tp.prune_linear_out_channels, 48),
    }
    for name, (module, function, width) in roots.items():
        expected = theirs(graph.get_pruning_group(module, function, list(range(width))))
        if name.endswith("heads"):
            expected = expected.view(8, -1).mean(1)
        torch.testing.assert_close(ours[name], expected.detach().float(), rtol=1e-5, atol=0)


def test_score_of_a_kv_group_is_that_of_its_multi_head_twin():
    """Repeating each key and value head for its query heads changes nothing about the group's mean."""
    model = tiny.model("llama")
    groups = {g.name: g for g in trace_groups(model)}
    kv = attention_units(groups["layers.0.heads"], groups["layers.0.kv_heads"], KV_HEADS)
    ours = scores_of([kv], dict(model.named_parameters()))[kv.name]
    attention = model.model.layers[0].self_attn
    per_channel = [
        attention.q_proj.weight.square().sum(1),
        attention.k_proj.weight.view(4, 8, 48).repeat_interleave(2, 0).reshape(64, 48).square().sum(1),
        attention.v_proj.weight.view(4, 8, 48).repeat_interleave(2, 0).reshape(64, 48).square().sum(1),
        attention.o_proj.weight.square().sum(0),
    ]
    torch.testing.assert_close(ours, torch.stack(per_channel).mean(0).view(4, 16).mean(1).detach())


def test_layout_does_not_matter():
    """A phi3 with the weights of a llama keeps the same units."""
    llama, phi3 = tiny.model("llama", head_dim=6, rope_parameters=None), tiny.model("phi3")
    target = dict(phi3.named_parameters())
    with torch.no_grad():
        for i, layer in enumerate(llama.model.layers):
            attention, mlp, prefix = layer.self_attn, layer.mlp, f"model.layers.{i}."
            qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
            target[f"{prefix}self_attn.qkv_proj.weight"].copy_(qkv)
            target[f"{prefix}self_attn.o_proj.weight"].copy_(attention.o_proj.weight)
            target[f"{prefix}mlp.gate_up_proj.weight"].copy_(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
            target[f"{prefix}mlp.down_proj.weight"].copy_(mlp.down_proj.weight)
        target["lm_head.weight"].copy_(llama.lm_head.weight)
    for ratios in (tiny.ALL, {"kv_heads": 0.5}):
        assert planned(llama, ratios)[1].kept == planned(phi3, ratios)[1].kept


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_permuting_the_neurons_permutes_the_scores(case):
    model = tiny.model(case)
    group = next(g for g in trace_groups(model) if g.name == "layers.1.mlp")
    parameters = dict(model.named_parameters())
    before = scores_of([group], parameters)[group.name]
    order = torch.randperm(group.units)
    with torch.no_grad():
        for member in group.members:
            parameter = parameters[member.parameter]
            parameter.copy_(parameter.index_select(member.dim, order))
    torch.testing.assert_close(scores_of([group], parameters)[group.name], before[order])


@pytest.mark.slow
@pytest.mark.parametrize("name", CRITERIA.names())
@pytest.mark.parametrize("case", tiny.CASES)
def test_every_criterion_on_every_family(case, name):
    """Finite, one score per unit, deterministic for a seed, and it decides a legal plan."""
    axes = criterion_of(name).axes
    ratios = tiny.axes(case)["all" if HIDDEN in axes or case not in tiny.DERIVED else "mlp"]
    _, plan, _ = planned(tiny.model(case), ratios, name, seed=3)
    again = planned(tiny.model(case), ratios, name, seed=3)[1]
    assert plan == again
    assert plan.parameters_after < plan.parameters_before


def test_random_depends_on_seed_and_group_only():
    groups = trace_groups(tiny.model("llama"))
    first, second = (scores_of(groups, {}, "random", seed) for seed in (0, 1))
    assert not torch.equal(first["hidden"], second["hidden"])
    assert not torch.equal(first["layers.0.mlp"], first["layers.1.mlp"])
    alone = scores_of([groups[-1]], {}, "random", 0)
    assert torch.equal(alone["layers.1.mlp"], first["layers.1.mlp"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_broken_weights_are_named(bad, name):
    model = tiny.model("llama", dtype=torch.bfloat16)
    dict(model.named_parameters())[name].data[3, 5] = bad
    weights, groups = Weights(dict(model.named_parameters())), trace_groups(model)

    def check():
        score(groups, criterion_of("magnitude"), Statistics(weights=weights))
        weights.check_all_finite()

    with pytest.raises(RunError, match=f"{name} holds 1 values that are NaN or Inf"):
        check()


@dataclass(frozen=True)
class Broken(Criterion):
    """Scores that are no numbers."""

    name = "broken"

    def score(self, group, statistics):
        return torch.full((group.units,), float("nan"))


def test_a_criterion_that_gives_no_finite_score_is_an_error():
    group = trace_groups(tiny.model("llama"))[0]
    with pytest.raises(RunError, match="broken gives no finite score for each of the 48 units of hidden"):
        score([group], Broken(), Statistics())


def test_registry():
    assert {"magnitude", "amp", "flap", "wanda_sp", "mag_sp", "taylor", "random"} <= set(CRITERIA.names())
    with pytest.raises(UsageError, match="unknown importance 'magnitud'; did you mean 'magnitude'"):
        criterion_of("magnitud")
    assert criterion_of("random", usual={"seed": 3}).seed == 3
    assert criterion_of(Broken()) == Broken()
    with pytest.raises(ValueError, match="importance 'random' is registered already"):
        CRITERIA.register("random", Broken)
    with pytest.raises(ValueError, match=r"criterion 'odd' needs \['colours'\]; known: weights"):
        type("Odd", (Criterion,), {"name": "odd", "needs": frozenset(("colours",))})
