"""SliceGPT in stock shape: the pruned model is the dense one, confined to the leading directions of its stream."""

import copy

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from llm_pruner import METHODS, prune
from llm_pruner.errors import PlanError, RunError, UsageError
from llm_pruner.methods.slicegpt import SliceGPT, covariance, leading
from llm_pruner.model.axes import HIDDEN
from llm_pruner.model.families import FAMILIES, Family
from llm_pruner.model.trace import trace_groups
from llm_pruner.model.untie import is_tied, untied
from llm_pruner.shape.draft import draft
from llm_pruner.shape.request import Budget, Ratio, Replay, Target
from tests.support import tiny
from tests.support.reconstructing import confine

WIDE, NARROW = 48, 24
HALF = Target({"hidden_size": NARROW})
ROTATED = [case for case in tiny.RMSNORM if case != "gemma3_text"]
# so large that nothing is right without its correction
COARSE = {"rms_norm_eps": 0.05}


def prompts(rows: int = 8, length: int = 16) -> list[torch.Tensor]:
    return list(tiny.tokens(rows, length))


def basis_of(model, width: int = NARROW) -> torch.Tensor:
    return leading(covariance(model, trace_groups(model), [torch.stack(prompts())]), width)[0]


def directions(tokens: list[list[float]], normalised: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(covariance, the leading direction without its sign)."""
    rows = torch.tensor(tokens, dtype=torch.double)
    rows = rows / rows.norm(dim=1, keepdim=True) if normalised else rows
    return rows.T @ rows, leading(rows.T @ rows, 1)[0][:, 0].abs()


def test_the_examples_by_hand():
    """(1,1), (−1,−1) have one direction; with (0,10) the covariance is raw: one long token outweighs the others."""
    two = [[1.0, 1.0], [-1.0, -1.0]]
    sums, first = directions(two)
    assert torch.linalg.eigvalsh(sums).tolist() == pytest.approx([0, 4], abs=1e-12)
    assert first.tolist() == pytest.approx([0.5**0.5] * 2)
    assert leading(sums, 1)[1] == pytest.approx(1)
    sums, first = directions([*two, [0.0, 10.0]])
    assert sums.tolist() == [[2, 2], [2, 102]]
    assert first.tolist() == pytest.approx([0.020, 1.000], abs=5e-4)
    assert directions([*two, [0.0, 10.0]], normalised=True)[1].tolist() == pytest.approx([0.526, 0.851], abs=5e-4)


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_the_stock_norm_divides_by_the_old_width(epsilon):
    """Four channels become two, of which (3, 4) stay: (1.2, 1.6), and with an ε what it makes of them."""
    norm = LlamaRMSNorm(2, eps=epsilon * 4 / 2)
    norm.weight.data.fill_((4 / 2) ** 0.5)
    kept = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(norm(kept), kept / (kept.square().sum() / 4 + epsilon).sqrt())
    if not epsilon:
        torch.testing.assert_close(norm(kept), torch.tensor([1.2, 1.6]))


@pytest.mark.parametrize(
    ("ratio", "step", "width"), [(0.3, 1, 400), (0.25, 1, 432), (0.3, 64, 384), (0.3, 12, 384), (0.001, 1, 568)]
)
def test_a_ratio_leaves_a_multiple_of_eight_rounded_down(ratio, step, width):
    """403.2 channels of 576 are 400. A quarter leaves 432 exactly."""
    config = tiny.config("llama", hidden_size=576)
    made = draft(Ratio({"hidden": ratio}, round_to=step), config, SliceGPT())
    assert made.widths == (made.traced.counter.before.but({HIDDEN: width}),) * 2
    assert draft(Ratio(ratio, round_to=step), config, SliceGPT()).widths == made.widths


def test_a_ratio_that_leaves_no_step():
    with pytest.raises(PlanError, match="hidden_size: ratio 0.9 leaves less than 8 of 48 channels"):
        draft(Ratio(0.9), tiny.config("llama"), SliceGPT())


def test_every_site_in_front_of_a_norm_counts_and_every_token_as_it_is():
    """2L + 1 sites, from the inputs of the model's own norms; prompts of two lengths."""
    model = tiny.model("llama")
    batches = [tiny.tokens(3, 12), tiny.tokens(1, 7, seed=3)]
    seen: list[torch.Tensor] = []
    layers = model.model.layers
    norms = [norm for layer in layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    handles = [
        norm.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for norm in (*norms, model.model.norm)
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for handle in handles:
        handle.remove()
    assert len(seen) == 2 * (2 * 2 + 1)
    rows = torch.cat([hidden.flatten(0, 1) for hidden in seen]).double()
    torch.testing.assert_close(covariance(model, trace_groups(model), batches), rows.T @ rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", ROTATED)
def test_it_computes_what_the_dense_model_does_in_the_leading_directions(case):
    """Of any weights: a dense model whose writers are projected on them gives the same logits, to rounding."""
    dense = tiny.model(case, **COARSE)
    dense = untied(dense) if is_tied(dense) else dense
    basis = basis_of(dense)
    new, plan = prune(tiny.model(case, **COARSE), HALF, SliceGPT(), prompts())
    expected = tiny.logits(dense)
    confine(dense, (basis @ basis.T).float())
    torch.testing.assert_close(tiny.logits(new), tiny.logits(dense), atol=2e-5, rtol=1e-4)
    assert (tiny.logits(dense) - expected).norm() > 0.1 * expected.norm()
    assert (new.config.hidden_size, plan.importance, plan.config["rms_norm_eps"]) == (NARROW, "slicegpt", 0.1)
    assert sum(p.numel() for p in new.parameters()) == plan.parameters_after


@pytest.mark.parametrize("case", ROTATED)
def test_all_directions_lose_nothing(case):
    """What enters the layers is in 40 directions, and 40 stay."""
    model = tiny.model(case, tie_word_embeddings=False, **COARSE)
    directions = torch.linalg.qr(torch.randn(WIDE, 40, dtype=torch.double)).Q
    confine(model, (directions @ directions.T).float())
    expected = tiny.logits(model)
    torch.testing.assert_close(
        tiny.logits(prune(model, Target({"hidden_size": 40}), SliceGPT(), prompts()).model), expected,
        atol=2e-5, rtol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize("case", ["llama_tied", "qwen2", "gemma"])
def test_tied_embeddings_become_untied(case):
    """lm_head has the final norm's weight in it then, and is paid for."""
    model = tiny.model(case)
    before = sum(p.numel() for p in model.parameters())
    new, plan = prune(model, HALF, SliceGPT(), prompts())
    assert not is_tied(new)
    assert new.config.tie_word_embeddings is plan.config["tie_word_embeddings"] is False
    assert plan.parameters_before == before
    assert plan.parameters_after == sum(p.numel() for p in new.parameters())
    assert sum(p.numel() for p in model.parameters()) == 0, "it gave up its tensors"


@pytest.mark.parametrize(("case", "share"), [("llama", 0.5), ("llama_tied", 0.5), ("llama_tied", 0.8)])
def test_a_size_of_the_whole_model_is_met_with_the_head_that_is_paid_for(case, share):
    model = tiny.model(case)
    wanted = round(share * sum(p.numel() for p in model.parameters()))
    new, plan = prune(model, Budget(params=wanted), SliceGPT(), prompts())
    assert sum(p.numel() for p in new.parameters()) == plan.parameters_after == pytest.approx(wanted, rel=0.01)
    assert set(plan.after[0].items()) - set(plan.before.items()) == {(HIDDEN, new.config.hidden_size)}


def test_a_share_of_the_parameters_is_met_by_the_hidden_size_alone():
    new, plan = prune(tiny.model("llama"), Budget(param_ratio=0.375, axes=("hidden",)), SliceGPT(), prompts())
    assert (new.config.hidden_size, plan.removed()["decoder"]) == (30, 0.375)


def test_biases_are_rotated_too():
    """Of output projections Qᵀb; of input projections they stay."""
    model = tiny.model("llama_multi_head")
    basis, before = basis_of(model), copy.deepcopy(dict(model.named_parameters()))
    new = prune(model, HALF, SliceGPT(), prompts()).model
    for name in ("self_attn.o_proj.bias", "mlp.down_proj.bias"):
        own, dense = new.model.layers[1].get_parameter(name), before[f"model.layers.1.{name}"]
        torch.testing.assert_close(own, (basis.T @ dense.double()).float())
    own, dense = new.model.layers[1].self_attn.q_proj.bias, before["model.layers.1.self_attn.q_proj.bias"]
    assert torch.equal(own, dense)


def test_a_ratio_of_zero_makes_a_copy():
    """Where the hidden size is no multiple of 8 too, and of families that nothing is defined for."""
    for case, changes in (("mistral", {"hidden_size": 44}), ("gpt2", {}), ("gemma3_text", {})):
        expected = tiny.logits(tiny.model(case, **changes))
        new, plan = prune(tiny.model(case, **changes), Ratio(0.0), SliceGPT())
        assert plan.after == (plan.before,) * 2
        assert torch.equal(tiny.logits(new), expected)


def test_kept_energy_is_told_and_grows_with_the_width():
    pruned = [
        SliceGPT().prune(model, draft(Target({"hidden_size": width}), model.config, SliceGPT()), prompts())
        for width in (16, 32)
        for model in (tiny.model("llama"),)
    ]
    few, many = (own.notes["energy"] for own in pruned)
    assert 16 / WIDE < few < many < 1


@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 0.2), (torch.float64, 1e-5)])
def test_other_dtypes_stay(dtype, close):
    """And give what float32 gives, as closely as they compute."""
    expected = tiny.logits(prune(tiny.model("llama"), HALF, SliceGPT(), prompts()).model)
    new = prune(tiny.model("llama", dtype=dtype), HALF, SliceGPT(), prompts()).model
    assert {p.dtype for p in new.parameters()} == {dtype}
    assert (tiny.logits(new) - expected).norm() < close * expected.norm()


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("gemma3_text", "gemma3_text normalises what goes into its residual stream"),
        ("gpt2", "gpt2 derives head_dim from hidden_size"),
        ("gpt_neox", "gpt_neox derives head_dim from hidden_size"),
    ],
)
@pytest.mark.parametrize("request_", [Ratio(0.5), HALF, Budget(param_ratio=0.5), Budget(params="1k")])
def test_families_that_no_rotation_goes_through_are_refused(case, reason, request_):
    with pytest.raises(PlanError, match=f"^method slicegpt: {reason}"):
        draft(request_, tiny.config(case), SliceGPT())


def test_layer_norms_are_refused():
    """Of a family whose head_dim is its own; nothing that is built in has that."""
    from transformers import Starcoder2Config

    config = Starcoder2Config(
        vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=8,
        num_key_value_heads=4,
    )  # fmt: skip
    FAMILIES.register("starcoder2", Family())
    try:
        with pytest.raises(PlanError, match="method slicegpt: starcoder2 has LayerNorms"):
            draft(HALF, config, SliceGPT())
    finally:
        del FAMILIES._objects["starcoder2"]


@pytest.mark.parametrize(
    "request_",
    [
        Ratio({"hidden": 0.5, "mlp": 0.5}), Ratio({"mlp": 0.5}), Ratio(0.5, axes=("heads",)),
        Budget(param_ratio=0.5, axes=("mlp",)), Budget(param_ratio=0.5, axes=("hidden", "mlp")), Budget(iteration=1),
        Budget(ratio=0.5), Budget(param_ratio=0.5, structure="AL-AM"),
        Target({"intermediate_size": 40}), Target({"hidden_size": 24, "intermediate_size": 40}),
    ],
)  # fmt: skip
def test_other_requests_are_refused_in_one_line(request_):
    with pytest.raises(UsageError, match="^method slicegpt shrinks the hidden size alone: give `prune` hidden=R, "):
        draft(request_, tiny.config("llama"), SliceGPT())


def test_layers_do_not_go():
    with pytest.raises(PlanError, match="slicegpt removes no whole layers"):
        draft(Target({"num_hidden_layers": 1}), tiny.config("llama"), SliceGPT())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Budget(param_ratio=0.001), "`param_ratio` 0.001 changes nothing; ask for a channel less at least"),
        (Budget(params="1M"), "`params` 1M: the model has 50,928 parameters; ask for fewer"),
        (Budget(params="200"), "hidden cannot meet the budget: 200 parameters are wanted"),
        (Target({"hidden_size": WIDE}), "`target` hidden_size=48 changes nothing"),
    ],
)
def test_sizes_that_cannot_be_met(request_, message):
    with pytest.raises(PlanError, match=message):
        draft(request_, tiny.config("llama"), SliceGPT())


def test_a_plan_is_not_replayed():
    plan = prune(tiny.model("llama"), Ratio({"hidden": 0.5})).plan
    with pytest.raises(UsageError, match="method slicegpt makes a plan of its own"):
        prune(tiny.model("llama"), Replay(plan), SliceGPT(), prompts())


def test_text_is_needed():
    with pytest.raises(UsageError, match="method slicegpt needs calibration prompts"):
        prune(tiny.model("llama"), HALF, SliceGPT())


def test_broken_weights_are_named():
    model = tiny.model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(RunError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        prune(model, HALF, SliceGPT(), prompts())


def test_by_its_name_with_its_option():
    assert METHODS.make("slicegpt:seed=3") == SliceGPT(seed=3)
    with pytest.raises(UsageError, match="method slicegpt has no option 'sparsity'"):
        METHODS.make("slicegpt:sparsity=0.3")
    with pytest.raises(UsageError, match="seed: -1"):
        SliceGPT(seed=-1)
