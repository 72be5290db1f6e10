"""From ratios and targets to widths, and to the parameter counts that were published."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from llm_pruner.errors import PlanError, UsageError
from llm_pruner.model.axes import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, MLP
from llm_pruner.model.families import resize, widths_of
from llm_pruner.model.skeleton import meta_model
from llm_pruner.model.trace import trace_groups
from llm_pruner.shape.plan import make_plan
from llm_pruner.shape.widths import parse_prune, parse_target, ratio_of_one_step, widths_by_ratio, widths_by_target
from tests.support import tiny
from tests.support.toys import widths

LLAMA_6M = widths(256, 8, 4, 704, 32)
LLAMA_3 = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_hidden_layers": 32, "vocab_size": 128256, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
}  # fmt: skip
LLAMA_31_ROPE = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}  # fmt: skip
LLAMA_2 = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32,
    "vocab_size": 32000,
}  # fmt: skip
PHI_3 = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 32,
    "num_hidden_layers": 32, "vocab_size": 32064, "sliding_window": 2047,
}  # fmt: skip
QWEN_2 = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
    "num_hidden_layers": 28, "vocab_size": 152064,
}  # fmt: skip
# Published by Torch-Pruning's LLM example.
PUBLISHED = {
    "Llama-3.1-8B": ("llama", {**LLAMA_3, "rope_scaling": LLAMA_31_ROPE}, 0.5, 2_337_409_024),
    "Llama-3-8B": ("llama", LLAMA_3, 0.5, 2_337_409_024),
    "Llama-2-7B": ("llama", LLAMA_2, 0.5, 1_750_206_464),
    "Phi-3-mini-4k": ("phi3", PHI_3, 0.5, 1_004_570_112),
    "Qwen2-7B": ("qwen2", QWEN_2, 0.428571428, 2_778_904_576),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts(name):
    model_type, values, ratio, parameters = PUBLISHED[name]
    model = meta_model(AutoConfig.for_model(model_type, **values))
    after = widths_by_ratio(widths_of(model.config), dict.fromkeys((HIDDEN, HEADS, MLP), ratio), False)
    layers = (after,) * model.config.num_hidden_layers
    assert make_plan(model, trace_groups(model), layers)[0].parameters_after == parameters


@given(n=st.integers(2, 20_000), ratio=st.floats(0, 0.999))
def test_kept_is_the_published_formula(n, ratio):
    kept = math.floor(n * (1 - ratio) + 1e-6)
    before = widths(n, 4, 4, n, 8)
    if kept == 0:
        with pytest.raises(PlanError, match="leaves nothing of hidden_size"):
            widths_by_ratio(before, {HIDDEN: ratio}, False)
    else:
        after = widths_by_ratio(before, {HIDDEN: ratio, MLP: ratio}, False)
        assert (after[HIDDEN], after[MLP]) == (kept, kept)


@given(
    groups=st.integers(1, 16),
    per_group=st.integers(2, 16),
    ratio=st.floats(0, 0.999),
    kv_ratio=st.one_of(st.none(), st.floats(0, 0.5)),
)
def test_grouped_heads_go_evenly(groups, per_group, ratio, kv_ratio):
    if groups == 1:
        kv_ratio = None
    before = widths(64, groups * per_group, groups, 64, 8)
    ratios = {HEADS: ratio} | ({} if kv_ratio is None else {KV_HEADS: kv_ratio})
    after = widths_by_ratio(before, ratios, False)
    assert after[KV_HEADS] == math.floor(groups * (1 - (kv_ratio or 0)) + 1e-6)
    assert after[HEADS] == after[KV_HEADS] * max(1, math.floor(per_group * (1 - ratio) + 1e-6))
    assert after[HEAD_DIM] == 8


@pytest.mark.parametrize(
    ("before", "ratios", "expected"),
    [
        (LLAMA_6M, {HIDDEN: 0.5, HEADS: 0.5, MLP: 0.5}, widths(128, 4, 4, 352, 32)),
        (LLAMA_6M, {HEADS: 0.25}, widths(256, 4, 4, 704, 32)),  # a group of two heads keeps one
        (LLAMA_6M, {HEADS: 0.9}, widths(256, 4, 4, 704, 32)),  # and never none
        (LLAMA_6M, {KV_HEADS: 0.5}, widths(256, 4, 2, 704, 32)),
        (LLAMA_6M, {KV_HEADS: 0.5, HEADS: 0.5}, widths(256, 2, 2, 704, 32)),
        (widths(64, 8, 8, 64, 8), {HEADS: 0.3}, widths(64, 5, 5, 64, 8)),
        (widths(64, 8, 8, 64, 8), {KV_HEADS: 0.5}, widths(64, 4, 4, 64, 8)),
    ],
)
def test_ratios(before, ratios, expected):
    assert widths_by_ratio(before, ratios, False) == expected


def test_derived_head_dim_ties_hidden_to_heads():
    gpt2 = widths(768, 12, 12, 3072, 64)
    both = {HIDDEN: 0.3, HEADS: 0.3}
    assert widths_by_ratio(gpt2, both, True) == widths(512, 8, 8, 3072, 64)
    assert widths_by_ratio(gpt2, both, True, round_to=128) == widths(512, 8, 8, 3072, 64)


def test_rounding():
    before = widths(4096, 32, 32, 11008, 128)
    after = widths_by_ratio(before, {HIDDEN: 0.3, MLP: 0.3}, False, round_to=128)
    assert (after[HIDDEN], after[MLP]) == (2816, 7680)  # nearest to 2867 and 7705
    assert widths_by_ratio(widths(100, 4, 4, 100, 8), {MLP: 0.01}, False, 64)[MLP] == 64
    with pytest.raises(PlanError, match="intermediate_size=150 rounds to no multiple of 512 up to 300"):
        widths_by_ratio(widths(300, 4, 4, 300, 8), {MLP: 0.5}, False, 512)
    nothing = {HIDDEN: 0.0, HEADS: 0.0, MLP: 0.0}
    assert widths_by_ratio(LLAMA_6M, nothing, False, 100) == LLAMA_6M, "ratio 0 is an exact copy"


def test_ratio_of_one_step_when_rounding():
    ratio = ratio_of_one_step(LLAMA_6M, [MLP], 128)
    assert widths_by_ratio(LLAMA_6M, {MLP: ratio}, False, 128)[MLP] < 704
    below = widths_by_ratio(widths(256, 8, 4, 640, 32), {MLP: 0.09}, False, 128)
    assert below[MLP] == 640
    assert ratio_of_one_step(widths(256, 8, 4, 640, 32), [MLP], 128) == pytest.approx(65 / 640, abs=1e-6)


def test_head_and_kv_ratio_of_a_multi_head_model_cannot_differ():
    with pytest.raises(PlanError, match="heads and kv_heads cannot differ"):
        widths_by_ratio(widths(64, 8, 8, 64, 8), {HEADS: 0.5, KV_HEADS: 0.25}, False)


def test_parse_prune():
    assert parse_prune("hidden,heads=0.25, mlp", 0.5) == {HIDDEN: 0.5, HEADS: 0.25, MLP: 0.5}
    assert parse_prune("mlp=0.1", None) == {MLP: 0.1}
    for text, ratio, message in [
        ("hiden", 0.5, "did you mean 'hidden'"),
        ("mlp,mlp", 0.5, "twice"),
        ("mlp", None, "has no ratio"),
        ("mlp=1", 0.5, "0 <= ratio < 1"),
        ("mlp=nan", 0.5, "0 <= ratio < 1"),
        (",", 0.5, "names nothing"),
    ]:
        with pytest.raises(UsageError, match=message):
            parse_prune(text, ratio)


def test_targets_by_standard_and_own_names():
    assert parse_target("hidden_size=24,intermediate_size=9", tiny.config("llama")) == {HIDDEN: 24, MLP: 9}
    assert parse_target("n_embd=24,n_head=3,n_inner=7", tiny.config("gpt2")) == {HIDDEN: 24, HEADS: 3, MLP: 7}
    for text, error, message in [
        ("hidden_sise=24", UsageError, "did you mean 'hidden_size'"),
        ("hidden_size=2e3", UsageError, "'2e3' is not a width"),
        ("hidden_size=0", UsageError, "'0' is not a width"),
        ("hidden_size=8,hidden_size=8", UsageError, "twice"),
        ("", UsageError, "sets nothing"),
        ("head_dim=4", PlanError, "head_dim never changes"),
    ]:
        with pytest.raises(error, match=message):
            parse_target(text, tiny.config("llama"))


def test_widths_by_target():
    assert widths_by_target(LLAMA_6M, {HIDDEN: 200}) == widths(200, 8, 4, 704, 32)
    assert widths_by_target(LLAMA_6M, {KV_HEADS: 2}) == widths(256, 4, 2, 704, 32)
    assert widths_by_target(LLAMA_6M, {KV_HEADS: 2, HEADS: 2}) == widths(256, 2, 2, 704, 32)
    assert widths_by_target(widths(64, 8, 8, 64, 8), {HEADS: 5}) == widths(64, 5, 5, 64, 8)
    for target, message in [
        ({HIDDEN: 257}, "is more than the model has \\(256\\)"),
        ({HEADS: 6}, "nearest legal: 4 or 8"),
        ({KV_HEADS: 3, HEADS: 7}, "nearest legal: 6"),
        ({KV_HEADS: 2, HEADS: 8}, "is 4 query heads a group, and a group has 2; at most 4 heads are legal"),
    ]:
        with pytest.raises(PlanError, match=message):
            widths_by_target(LLAMA_6M, target)


@pytest.mark.parametrize("one", [HIDDEN, HEADS, KV_HEADS, MLP])
def test_ratio_of_one_step_takes_exactly_one(one):
    after = widths_by_ratio(LLAMA_6M, {one: ratio_of_one_step(LLAMA_6M, [one])}, False)
    lost = {HIDDEN: (1, 0, 0, 0), HEADS: (0, 4, 0, 0), KV_HEADS: (0, 2, 1, 0), MLP: (0, 0, 0, 1)}[one]
    assert tuple(LLAMA_6M[axis] - after[axis] for axis in (HIDDEN, HEADS, KV_HEADS, MLP)) == lost


@pytest.mark.parametrize(
    ("case", "wanted", "message"),
    [
        ("gemma3_text", widths(47, 4, 4, 80, 12), "hidden_size=44,num_attention_heads=4.* or hidden_size=48"),
        (
            "gpt2",
            widths(48, 3, 3, 192, 8),
            "shrink together; nearest legal: hidden_size=24,num_attention_heads=3,num_key_value_heads=3$",
        ),
        (
            "gpt_neox",
            widths(30, 6, 6, 80, 8),
            "shrink together; nearest legal: hidden_size=24,.*=3 or hidden_size=32,.*=4,.*=4$",
        ),
    ],
)
def test_shape_that_no_class_holds_names_the_nearest(case, wanted, message):
    with pytest.raises(PlanError, match=message):
        resize(tiny.config(case), wanted)


def test_nearest_legal_shapes_are_legal():
    import re

    config = tiny.config("gemma3_text")
    with pytest.raises(PlanError, match="nearest legal: ") as error:
        resize(config, widths(31, 4, 4, 80, 12))
    found = re.findall(r"hidden_size=(\d+),num_attention_heads=(\d+),num_key_value_heads=(\d+)", str(error.value))
    for hidden, heads, kv_heads in found[1:]:
        assert resize(config, widths(int(hidden), int(heads), int(kv_heads), 80, 12)).hidden_size == int(hidden)
    assert len(found) == 3


def test_longrope_allows_only_widths_that_keep_its_table():
    """Phi-3's config checks the table's length against hidden // heads, whatever head_dim says."""
    factors = [1.0, 2.0, 3.0]
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    config = tiny.config("phi3", rope_parameters=rope, original_max_position_embeddings=32)
    assert resize(config, widths(24, 4, 4, 80, 6)).hidden_size == 24
    nearest = "nearest legal: hidden_size=24,num_attention_heads=4"
    with pytest.raises(PlanError, match=f"no stock phi3 class holds hidden_size=24,num_attention_heads=8.*{nearest}"):
        resize(config, widths(24, 8, 4, 80, 6))
