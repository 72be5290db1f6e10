"""The groups: complete, disjoint, the same from a config and from a loaded model, whatever the layout."""

import cProfile
import pstats
import time

import pytest
import torch

import llm_pruner
from llm_pruner.errors import PlanError, RunError
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS, MLP
from llm_pruner.model.families import widths_of
from llm_pruner.model.groups import attention_units
from llm_pruner.model.skeleton import meta_model
from llm_pruner.model.trace import trace_groups
from tests.support import tiny


@pytest.mark.parametrize("case", tiny.CASES)
def test_groups_of_every_family(case):
    model = tiny.model(case)
    widths = widths_of(model.config)
    groups = trace_groups(model)
    assert [g.name for g in groups] == ["hidden"] + [
        f"layers.{i}.{axis}" for i in range(2) for axis in (HEADS, KV_HEADS, MLP)
    ]
    units = {
        HIDDEN: widths[HIDDEN],
        HEADS: widths[HEADS],
        KV_HEADS: widths[KV_HEADS],
        MLP: widths[MLP],
    }
    assert all(group.units == units[group.axis] for group in groups)


@pytest.mark.parametrize("case", tiny.CASES)
def test_every_position_is_owned_once(case):
    """Each axis of each parameter is owned whole, but for the vocabulary, learned positions and head_dim norms."""
    model = tiny.model(case)
    parameters = dict(model.named_parameters())
    owners = {
        (name, axis): torch.zeros(n, dtype=int) for name, p in parameters.items() for axis, n in enumerate(p.shape)
    }
    blocks = set()
    for group in trace_groups(model):
        for member in group.members:
            key = (member.parameter, member.dim, member.start)
            if key not in blocks:  # a tied tensor is a member as embedding and as lm_head
                blocks.add(key)
                owners[member.parameter, member.dim][member.positions(torch.arange(group.units))] += 1
    tables = ("embed", "lm_head", ".wte", ".wpe")  # rows are tokens or positions
    free = {
        (name, axis)
        for name, p in parameters.items()
        for axis in range(p.dim())
        if "q_norm" in name or "k_norm" in name or (axis == 0 and any(part in name for part in tables))
    }
    assert {key for key, count in owners.items() if (count == 0).all()} == free
    assert all((count == 1).all() for key, count in owners.items() if key not in free)


@pytest.mark.parametrize("case", tiny.CASES)
def test_needs_no_weights(case):
    assert trace_groups(meta_model(tiny.config(case))) == trace_groups(tiny.model(case))


def test_residual_stream_of_llama():
    hidden = trace_groups(tiny.model("llama"))[0]
    layer = [
        (m.parameter.removeprefix("model.layers.0."), m.dim, m.role) for m in hidden.members if ".0." in m.parameter
    ]
    assert sorted(layer) == [
        ("input_layernorm.weight", 0, "rmsnorm"),
        ("mlp.down_proj.weight", 0, "linear"),
        ("mlp.gate_proj.weight", 1, "linear"),
        ("mlp.up_proj.weight", 1, "linear"),
        ("post_attention_layernorm.weight", 0, "rmsnorm"),
        ("self_attn.k_proj.weight", 1, "linear"),
        ("self_attn.o_proj.weight", 0, "linear"),
        ("self_attn.q_proj.weight", 1, "linear"),
        ("self_attn.v_proj.weight", 1, "linear"),
    ]
    assert [(m.parameter, m.dim, m.role) for m in hidden.members if m.parameter.count(".") <= 2] == [
        ("model.embed_tokens.weight", 1, "embedding"),
        ("model.norm.weight", 0, "rmsnorm"),
        ("lm_head.weight", 1, "linear"),
    ]


def test_fused_layouts_by_hand():
    """phi3: rows [Q; K; V] and [gate; up]; gpt_neox: q, k, v of head 0, then of head 1 …"""
    groups = {g.name: g for g in trace_groups(tiny.model("phi3"))}
    rows = {m.start: (m.stride, m.width) for m in groups["layers.0.kv_heads"].members}
    assert rows == {48: (6, 6), 72: (6, 6)}  # 8 query heads of 6, then 4 keys, then 4 values
    assert [(m.dim, m.start) for m in groups["layers.0.mlp"].members if "gate_up" in m.parameter] == [(0, 0), (0, 80)]
    groups = {g.name: g for g in trace_groups(tiny.model("gpt_neox"))}
    query = next(m for m in groups["layers.1.heads"].members if "query_key_value.weight" in m.parameter)
    assert query.positions(torch.tensor([0, 2])).tolist() == [*range(0, 8), *range(48, 56)]
    starts = sorted(m.start for m in groups["layers.1.kv_heads"].members if m.parameter.endswith("weight"))
    assert starts == [8, 16]


def test_units_of_grouped_attention():
    """A query head leaves its key alone; a kv group takes both its query heads along."""
    groups = {g.name: g for g in trace_groups(tiny.model("llama"))}
    heads, kv_heads = groups["layers.0.heads"], groups["layers.0.kv_heads"]
    assert {m.parameter.split(".")[-2] for m in attention_units(heads, kv_heads, HEADS).members} == {"q_proj", "o_proj"}
    whole = attention_units(heads, kv_heads, KV_HEADS)
    assert whole.units == 4
    assert {m.parameter.split(".")[-2]: m.width for m in whole.members} == {
        "q_proj": 16, "k_proj": 8, "v_proj": 8, "o_proj": 16,
    }  # fmt: skip


def test_longrope_tables_of_the_real_heads_do_not_disturb():
    """Phi-3's long-context models carry one RoPE factor per pair of a head's dimensions."""
    factors = [1.0, 2.0, 3.0]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    config = tiny.config("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    assert trace_groups(meta_model(config)) == trace_groups(tiny.model("phi3"))


def test_unsupported_family_is_refused_with_the_list():
    model = tiny.model("llama")
    model.config.model_type = "bloom"
    with pytest.raises(PlanError, match=r"'bloom' is not supported; supported: gemma, .*qwen3"):
        trace_groups(model)


def test_model_that_is_not_its_family_is_refused():
    model = tiny.model("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(48, 79, bias=False)
    with pytest.raises(PlanError, match=r"up_proj.weight: axis 0 has 79 positions, the trace accounts for 80"):
        trace_groups(model)


def test_trace_that_does_not_end_names_the_module(monkeypatch):
    def forever(self, x):
        while True:
            time.sleep(0.01)

    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", forever)
    with pytest.raises(RunError, match=r"did not end within 0\.3 s; it was at model\.layers\.0\.mlp"):
        trace_groups(tiny.model("llama"), time_limit=0.3)


@pytest.mark.slow
def test_cost_grows_linearly_with_layers():
    """In function calls, which no neighbour on the machine can change; benchmarks/tracing.py measures the seconds."""

    def calls(layers: int) -> int:
        model = meta_model(tiny.config("llama", num_hidden_layers=layers))
        profile = cProfile.Profile()
        profile.runcall(trace_groups, model)
        return pstats.Stats(profile).total_calls

    assert calls(64) < 2.2 * calls(32) < 2.2 * 2.2 * calls(16)


def test_only_trace_imports_torch_pruning():
    from pathlib import Path

    package = Path(llm_pruner.__file__).parent
    users = [f.name for f in package.rglob("*.py") if "torch_pruning" in f.read_text(encoding="utf-8")]
    assert users == ["trace.py"]
