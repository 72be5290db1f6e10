"""The cut on every family and axis: it equals masking, keeps what it should, and reloads as a stock model."""

import copy

import pytest
import torch

from llm_pruner.errors import PlanError
from llm_pruner.model.depth import make_shallow
from llm_pruner.model.families import widths_of
from llm_pruner.model.groups import kept_positions
from llm_pruner.model.skeleton import meta_model
from llm_pruner.model.surgery import cut, widened
from llm_pruner.model.trace import trace_groups
from tests.support import tiny
from tests.support.steps import planned, pruned

CASES_AND_AXES = [(case, name) for case in tiny.CASES for name in tiny.axes(case)]


def removed_positions(model, groups, plan):
    """{parameter: {axis: LongTensor of the positions that go}}."""
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    gone = {}
    for name, axes in kept_positions(groups, plan.kept, shapes).items():
        for axis, kept in axes.items():
            mask = torch.ones(shapes[name][axis], dtype=torch.bool)
            mask[kept] = False
            gone.setdefault(name, {})[axis] = mask.nonzero().flatten()
    return gone


@pytest.mark.slow
@pytest.mark.parametrize(("case", "axis"), [(c, a) for c, a in CASES_AND_AXES if a in ("heads", "kv_heads", "mlp")])
def test_cut_equals_zeroed_columns(case, axis):
    """Removing heads or neurons is the same as zeroing the columns of o_proj or down_proj that read them."""
    model = tiny.model(case)
    groups, plan, config = planned(model, tiny.axes(case)[axis])
    masked = copy.deepcopy(model)
    parameters = dict(masked.named_parameters())
    readers = ("o_proj.weight", "down_proj.weight", "mlp.c_proj.weight", "dense_4h_to_h.weight")
    zeroed = 0
    with torch.no_grad():
        for name, axes in removed_positions(model, groups, plan).items():
            if name.endswith(readers):
                for dim, positions in axes.items():
                    parameters[name].index_fill_(dim, positions, 0.0)
                    zeroed += len(positions)
    assert zeroed
    expected = tiny.logits(masked)
    assert (expected - tiny.logits(model)).abs().max() > 1e-2
    torch.testing.assert_close(tiny.logits(cut(model, groups, plan.kept, config)), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("case", tiny.RMSNORM)
def test_cutting_silent_channels_changes_nothing(case):
    """Channels that nothing writes to can go: norms and scaled embeddings are corrected for the new width.

    The norms' eps stays (head-level norms share it) and is no longer the same beside the mean square, so it is
    made negligible here; at 1e-6 it shows as 1e-4 in these models, whose streams are small.
    """
    model = tiny.model(case, rms_norm_eps=1e-12)
    groups, plan, config = planned(model, {"hidden": 1 / 3})
    silent = torch.tensor(sorted(set(range(48)) - set(plan.kept["hidden"])))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for member in groups[0].members:
            writes = member.parameter.endswith(("o_proj.weight", "down_proj.weight", "o_proj.bias", "down_proj.bias"))
            if writes or member.role == "embedding":
                parameters[member.parameter].index_fill_(member.dim, silent, 0.0)
    expected = tiny.logits(model)
    new = cut(model, groups, plan.kept, config)
    assert new.config.hidden_size == 32
    torch.testing.assert_close(tiny.logits(new), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), CASES_AND_AXES)
def test_shapes_are_the_plans(case, name):
    model = tiny.model(case)
    before = sum(p.numel() for p in model.parameters())
    groups, plan, config = planned(model, tiny.axes(case)[name])
    new = cut(model, groups, plan.kept, config)
    assert (widths_of(new.config),) * 2 == plan.after != (plan.before,) * 2
    stock = meta_model(new.config)
    assert {n: p.shape for n, p in new.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}
    assert (before, sum(p.numel() for p in new.parameters())) == (plan.parameters_before, plan.parameters_after)
    assert sum(p.numel() for p in model.parameters()) == 0, "the old model still holds tensors"


@pytest.mark.parametrize("case", tiny.DERIVED)
def test_fused_projections_keep_the_rows_of_the_kept_heads(case):
    """Query, key and value of each kept head, by hand, with the kept hidden channels on the other axis."""
    model = tiny.model(case)
    groups, plan, config = planned(model, {"hidden": 0.5, "heads": 0.5})
    heads, hidden = plan.kept["layers.1.heads"], plan.kept["hidden"]
    if case == "gpt2":
        old = model.transformer.h[1].attn.c_attn  # weight [in, Q | K | V]
        weight = old.weight.T.reshape(3, 6, 8, 48)[:, heads].reshape(72, 48)[:, hidden].T.clone()
        bias = old.bias.reshape(3, 6, 8)[:, heads].flatten().clone()
        new = cut(model, groups, plan.kept, config).transformer.h[1].attn.c_attn
    else:
        old = model.gpt_neox.layers[1].attention.query_key_value  # rows: q, k, v of head 0, then of head 1 …
        weight = old.weight.reshape(6, 24, 48)[heads].reshape(72, 48)[:, hidden].clone()
        bias = old.bias.reshape(6, 24)[heads].flatten().clone()
        new = cut(model, groups, plan.kept, config).gpt_neox.layers[1].attention.query_key_value
    assert torch.equal(new.weight, weight)
    assert torch.equal(new.bias, bias)


@pytest.mark.parametrize("case", tiny.CASES)
def test_keeping_everything_is_the_identity(case):
    model = tiny.model(case)
    expected, state = tiny.logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    new = pruned(model, {"hidden": 0.0, "heads": 0.0, "mlp": 0.0})
    assert all(torch.equal(state[name], tensor) for name, tensor in new.state_dict().items())
    assert torch.equal(tiny.logits(new), expected)


@pytest.mark.parametrize(
    "case", [c for c in tiny.CASES if c in ("llama_tied", "qwen2", "gemma", "gemma3_text", "gpt2")]
)
def test_ties_survive(case):
    new = pruned(tiny.model(case), tiny.axes(case)["all"])
    assert new.get_input_embeddings().weight is new.get_output_embeddings().weight
    assert new.config.tie_word_embeddings


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_dtype_and_mode_are_kept(dtype):
    model = tiny.model("gemma3_text", dtype=dtype)
    model.generation_config.max_new_tokens = 5
    new = pruned(model, tiny.ALL)
    assert {p.dtype for p in new.parameters()} == {dtype}
    assert not new.training
    assert new.generation_config.max_new_tokens == 5


def test_llama_shape_that_its_class_refuses_becomes_mistral():
    """hidden 32 with 6 heads: LlamaConfig wants one to divide the other, MistralConfig computes the same without."""
    model = tiny.model("llama", num_attention_heads=12, num_key_value_heads=6, hidden_size=48)
    expected = tiny.logits(copy.deepcopy(model))
    new = pruned(model, {"heads": 0.5, "hidden": 1 / 3})
    assert (type(new).__name__, new.config.model_type) == ("MistralForCausalLM", "mistral")
    assert (new.config.hidden_size, new.config.num_attention_heads, new.config.sliding_window) == (32, 6, None)
    assert new.config.rope_parameters == model.config.rope_parameters
    assert expected.shape == tiny.logits(new).shape


def test_relabelled_llama_computes_what_llama_does():
    """The same kept units through both classes, at a shape that both hold."""
    from llm_pruner.model.families import family_of

    model = tiny.model("llama")
    groups, plan, config = planned(model, {"mlp": 0.3, "heads": 0.5})
    model_type, changes = family_of("llama").relabel
    values = {**config.to_dict(), **changes, "model_type": model_type}
    from transformers import MistralConfig

    as_mistral = cut(copy.deepcopy(model), groups, plan.kept, MistralConfig.from_dict(values))
    assert torch.equal(tiny.logits(as_mistral), tiny.logits(cut(model, groups, plan.kept, config)))


def test_biases_prevent_the_relabelling():
    model = tiny.model("llama_multi_head", num_attention_heads=12, num_key_value_heads=12)
    with pytest.raises(PlanError, match=r"no stock llama class holds hidden_size=32,num_attention_heads=12.*nearest"):
        pruned(model, {"hidden": 1 / 3})


def test_offloaded_model_is_refused():
    model = tiny.model("llama")
    groups, plan, config = planned(model, tiny.ALL)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(torch.empty(80, 48, device="meta"))
    with pytest.raises(PlanError, match=r"layers\.0\.mlp\.up_proj\.weight is offloaded"):
        cut(model, groups, plan.kept, config)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "axis"), [(c, a) for c, a in CASES_AND_AXES if a in ("heads", "kv_heads", "mlp")])
def test_a_cut_model_that_is_widened_does_the_same(case, axis):
    """It has the shape from before the cut, zeros where units went, and layers of its own."""
    model = tiny.model(case)
    before = copy.deepcopy(model)
    groups, plan, config = planned(model, tiny.axes(case)[axis])
    small = cut(model, groups, plan.kept, config)
    wide = widened(small, groups, plan.kept, before.config)
    assert {n: p.shape for n, p in wide.named_parameters()} == {n: p.shape for n, p in before.named_parameters()}
    torch.testing.assert_close(tiny.logits(wide), tiny.logits(small), atol=2e-5, rtol=1e-5)
    dense = dict(before.named_parameters())
    zeros = 0
    for name, axes in removed_positions(before, groups, plan).items():
        for dim, positions in axes.items():
            gone = wide.get_parameter(name).index_select(dim, positions)
            assert not gone.any()
            zeros += gone.numel()
    assert zeros
    kept = kept_positions(groups, plan.kept, {name: tuple(p.shape) for name, p in dense.items()})
    whole = [name for name in dense if name not in kept and ".0." in name]
    expected = tiny.logits(small)
    for name in whole:
        assert torch.equal(wide.get_parameter(name), dense[name])
        wide.get_parameter(name).data.zero_()
    assert torch.equal(tiny.logits(small), expected), "layers share no memory"


def test_layers_that_went_are_there_again_and_change_nothing():
    model = tiny.model("llama", num_hidden_layers=3)
    before, groups = model.config, trace_groups(model)
    make_shallow(model, (0, 2))
    wide = widened(model, groups, {}, before, (0, 2))
    assert wide.config.num_hidden_layers == 3
    torch.testing.assert_close(tiny.logits(wide), tiny.logits(model))
