"""A smaller residual stream loses nothing where the stream lives in a subspace of that size."""

import copy

import pytest
import torch

from llm_pruner.calibration.layerwise import walk
from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS
from llm_pruner.model.families import family_of, widths_of
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.trace import trace_groups
from llm_pruner.reconstruction.embeddings_and_head import outside
from llm_pruner.reconstruction.layers import affine, set_affine
from llm_pruner.reconstruction.rotation import basis_of, norm_scale, norms_of, rotate_layer
from tests.support import tiny
from tests.support.reconstructing import (
    FITTED,
    PLAIN,
    calibration,
    confine,
    divergence,
    planned,
    reconstructed,
    subspace,
)

WIDE, NARROW = 48, 24
TINY_EPS = {"rms_norm_eps": 1e-12, "layer_norm_eps": 1e-12, "layer_norm_epsilon": 1e-12}
ROTATED = [case for case in tiny.RMSNORM if case != "gemma3_text"]


def built(case: str, **changes):
    """eps is negligible: at 1e-6 it shows in these models, whose streams are small."""
    return tiny.model(
        case, **{name: eps for name, eps in TINY_EPS.items() if hasattr(tiny.config(case), name)} | changes
    )


def narrower(model, fewer=()):
    return widths_of(model.config).but({HIDDEN: NARROW, **dict(fewer)})


@pytest.mark.slow
@pytest.mark.parametrize("case", ROTATED)
def test_nothing_is_lost_in_a_subspace(case):
    """Any 24 directions, not 24 channels; the lm_head of its own."""
    model = built(case, tie_word_embeddings=False)
    confine(model, subspace(WIDE, NARROW, centred=False))
    new = reconstructed(model, narrower(model), PLAIN).model
    assert new.config.hidden_size == NARROW
    torch.testing.assert_close(tiny.logits(new), tiny.logits(model), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", ["llama_tied", "qwen2", "gemma"])
def test_nothing_is_lost_where_embeddings_are_the_lm_head(case):
    """As long as the final norm, whose weight a rotation cannot reach, is the same for every channel."""
    model = built(case)
    confine(model, subspace(WIDE, NARROW, centred=False))
    model.model.norm.weight.data.fill_(1.3)
    new = reconstructed(model, narrower(model), PLAIN).model
    assert new.get_output_embeddings().weight is new.get_input_embeddings().weight
    torch.testing.assert_close(tiny.logits(new), tiny.logits(model), atol=2e-5, rtol=1e-4)


@torch.no_grad()
def layer_norm_model(case: str, **changes):
    """Half the heads give nothing, and the stream is one of mean zero in 23 directions."""
    model = built(case, tie_word_embeddings=False, **changes)
    layers = decoder_layers(model)
    for layer in layers:
        writer = layer.get_submodule({"gpt2": "attn.c_proj", "gpt_neox": "attention.dense"}[case])
        weight = affine(writer)
        weight[:, [*range(8), *range(16, 24), *range(40, 48)]] = 0.0  # heads 0, 2 and 5
        set_affine(writer, weight)
    projection = subspace(WIDE, NARROW - 1, centred=True)
    confine(model, projection)
    norms = [model.get_submodule(outside(trace_groups(model))[1].removesuffix(".weight"))]
    norms += [] if changes.get("attention_bias", True) else [layer.input_layernorm for layer in layers]
    for norm in norms:
        norm.bias.copy_(norm.weight * (projection @ norm.bias))  # no linear behind it has a bias to hold it
    return model


@pytest.mark.parametrize(("case", "changes"), [("gpt2", {}), ("gpt_neox", {}), ("gpt_neox", {"attention_bias": False})])
def test_nothing_is_lost_behind_layer_norms(case, changes):
    model = layer_norm_model(case, **changes)
    found = reconstructed(model, narrower(model, {HEADS: 3, KV_HEADS: 3}), PLAIN)
    assert [found.kept[f"layers.{layer}.heads"] for layer in (0, 1)] == [[1, 3, 4]] * 2
    torch.testing.assert_close(tiny.logits(found.model), tiny.logits(model), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("case", [*ROTATED, *tiny.DERIVED])
def test_a_rotated_layer_gives_the_rotated_stream(case):
    """Fᵣ(Pᵀh) = PᵀF(h), at every layer."""
    model = layer_norm_model(case) if case in tiny.DERIVED else built(case)
    if case not in tiny.DERIVED:
        confine(model, subspace(WIDE, NARROW, centred=False))
    groups, batches = trace_groups(model), [tiny.tokens(4, 16)]
    basis = basis_of(model, batches, NARROW, case in tiny.DERIVED)
    for layer in walk(model, batches):
        layer.run()
        wide = copy.deepcopy(layer.module)
        rotate_layer(wide, layer, groups, basis, family_of(model.config.model_type).norm_offset)
        with torch.no_grad():
            arguments, options = layer.arguments[0]
            found = wide(layer.stream[0] @ basis, *arguments, **options)
        torch.testing.assert_close(found, layer.outputs[0] @ basis, atol=2e-5, rtol=1e-4)


def test_every_token_counts_the_same():
    """A third of them are a thousand times as large, in another direction; the first is that of the others."""
    model = tiny.model("llama")
    confine(model, torch.zeros(WIDE, WIDE))
    embeddings = model.get_input_embeddings().weight.data
    embeddings[:, :3] = torch.tensor([2.0, 1.0, 2.0]) / 3
    embeddings[::3] = 0.0
    embeddings[::3, 3] = 1000.0
    basis = basis_of(model, [torch.arange(96)[None, :60]], 1, centred=False)
    torch.testing.assert_close(basis[:, 0].abs(), embeddings[1].abs(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_the_kept_energy_is_the_most_there_is(case):
    """Of the streams that enter the layers and of the last, no other basis keeps more."""
    centred, model = case == "gpt2", tiny.model(case)
    batches = [tiny.tokens(4, 16)]
    rows = []
    for layer in walk(model, batches):
        layer.run()
        rows += [*layer.stream, *(layer.outputs if layer.index == 1 else ())]
    rows = torch.cat([hidden.flatten(0, 1) for hidden in rows]).double()
    rows = rows - rows.mean(1, keepdim=True) if centred else rows
    rows /= rows.norm(dim=1, keepdim=True)
    best = torch.linalg.svdvals(rows)[: NARROW - centred].square().sum()
    found = (rows @ basis_of(model, batches, NARROW, centred).double()).square().sum()
    torch.testing.assert_close(found, best, rtol=1e-5, atol=0)


def test_basis_is_orthonormal():
    basis = basis_of(tiny.model("llama"), [tiny.tokens()], NARROW, centred=False)
    assert basis.shape == (WIDE, NARROW)
    torch.testing.assert_close(basis.T @ basis, torch.eye(NARROW), atol=1e-5, rtol=0)


def test_centred_basis_gives_streams_of_mean_zero():
    """All of a centred stream's energy is in NARROW - 1 directions, as much as a centred stream of NARROW can have."""
    basis = basis_of(tiny.model("gpt2"), [tiny.tokens()], NARROW, centred=True)
    assert basis.shape == (WIDE, NARROW)
    centred = torch.eye(NARROW) - torch.full((NARROW, NARROW), 1 / NARROW)
    torch.testing.assert_close(basis.T @ basis, centred, atol=1e-5, rtol=0)
    torch.testing.assert_close((torch.randn(7, WIDE) @ basis).mean(1), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis.sum(0), torch.zeros(NARROW), atol=1e-5, rtol=0)


@pytest.mark.parametrize("centred", [False, True])
def test_norms_make_up_for_the_energy_that_goes(centred):
    """√(ρ·d/d′), ρ by hand: of (3, 4, 0, 5) and (1, 1, 1, 1) two channels keep 25/50 and 2/4; centred, what they do."""
    hidden = torch.tensor([[[3.0, 4.0, 0.0, 5.0], [1.0, 1.0, 1.0, 1.0]]])
    if centred:
        hidden = torch.tensor([[[3.0, 1.0, 0.0, -4.0], [7.0, 5.0, 5.0, 3.0]]])  # 10/26 and, less 5, 4/8
    share = (10 / 26 + 4 / 8) / 2 if centred else 0.5
    assert norm_scale([hidden], torch.eye(4)[:, :2], centred) == pytest.approx((share * 4 / 2) ** 0.5)


def test_norms_over_hidden_channels_are_found():
    groups = trace_groups(tiny.model("qwen3"))
    assert norms_of(groups, 1) == ["input_layernorm", "post_attention_layernorm"]  # not those of queries and keys


def test_norms_in_front_of_the_stream_are_refused():
    model = tiny.model("gemma3_text")
    with pytest.raises(PlanError, match=r"post_attention_layernorm of layer 0 normalises what goes into the residual"):
        reconstructed(model, narrower(model))


@pytest.mark.parametrize(
    ("case", "changes"), [("gpt_neox", {"attention_bias": False}), ("gpt2", {"tie_word_embeddings": False})]
)
def test_biases_of_norms_stay_small(case, changes):
    """A centred basis leaves one direction of theirs without any effect, and there they must not grow: in bfloat16
    nothing would be left of what they are added to."""
    kl = {}
    for dtype in (torch.float32, torch.bfloat16):
        new = reconstructed(tiny.model(case, dtype=dtype, **changes), {"hidden": 0.5, "heads": 0.5})
        kl[dtype] = new.kl
        norms = {name: p for name, p in new.model.named_parameters() if name.endswith("bias") and _is_norm(name)}
        assert len(norms) == 5
        assert all(bias.abs().max() < 5 for bias in norms.values())
        assert any(bias.any() for bias in norms.values())
    assert kl[torch.bfloat16] == pytest.approx(kl[torch.float32], rel=0.1)


def _is_norm(name: str) -> bool:
    return "norm" in name or "ln_" in name


@pytest.mark.parametrize("case", ["llama", "gemma_untied", "gpt_neox"])
def test_least_squares_mend_what_a_rotation_loses(case):
    """On other tokens, where the stream has more directions than are left."""
    model = tiny.model(case)
    after = planned(model, {"hidden": 0.5, "heads": 0.5})[1].after if case in tiny.DERIVED else narrower(model)
    plain, fitted = (reconstructed(model, after, recipe, calibration(64)).model for recipe in (PLAIN, FITTED))
    other = [tiny.tokens(4, 24, seed=5)]
    assert divergence(model, fitted, other) < 0.9 * divergence(model, plain, other)
