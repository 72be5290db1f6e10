"""Sparse models of every family: which layers, what they compute, that they save and load."""

import json
import logging

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from llm_pruner.config.recipe import TARGETS, Recipe
from llm_pruner.errors import PlanError, RunError, UsageError
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.per_layer import per_layer_config
from llm_pruner.sparsity.calibration import sparsify_activations
from llm_pruner.sparsity.learn import Learning
from llm_pruner.sparsity.linear import SparseLinear, sparse_layers
from llm_pruner.sparsity.saved import mark
from llm_pruner.sparsity.targets import linear_layers, targeted
from llm_pruner.sparsity.weights import sparsify_weights
from tests.support import tiny

PLAIN = Recipe(n=8, m=16)
FULL = Recipe(ratio=0.5, select="threshold", transform="learnable", scaling=True, criterion="wanda")
PERMUTED = Recipe(n=8, m=16, transform="learnable", scaling=True, permutation=True)


def batches() -> list[torch.Tensor]:
    return [tiny.tokens(2, 32, seed) for seed in range(4)]


@pytest.fixture
def saved(tmp_path):
    """A model as it comes from disk: rotary embeddings in float32 whatever the dtype."""

    def load(case: str, dtype=torch.float32, **changes):
        tiny.model(case, dtype=dtype, **changes).save_pretrained(tmp_path / "dense")
        return AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto").eval()

    return load


@pytest.mark.parametrize("case", tiny.CASES)
def test_all_targets_are_all_linear_layers_of_the_decoder(case):
    model = tiny.model(case)
    names = targeted(model, TARGETS)
    inside = [
        module
        for layer in decoder_layers(model)
        for module in layer.modules()
        if isinstance(module, nn.Linear | Conv1D)
    ]
    assert [model.get_submodule(name) for name in names] == inside
    assert len(names) >= 2 * 4


def test_targets_by_part_and_by_pattern():
    llama, phi3 = tiny.model("llama"), tiny.model("phi3")
    assert targeted(llama, ("q", "o")) == [f"model.layers.{i}.self_attn.{p}_proj" for i in range(2) for p in ("q", "o")]
    assert targeted(llama, (r"layers\.1\..*(gate|down)",)) == [f"model.layers.1.mlp.{p}_proj" for p in ("gate", "down")]
    assert targeted(phi3, ("q", "k", "v")) == [f"model.layers.{i}.self_attn.qkv_proj" for i in range(2)]
    assert targeted(phi3, ("gate", "up", "down"))[:2] == [
        "model.layers.0.mlp.gate_up_proj",
        "model.layers.0.mlp.down_proj",
    ]
    assert targeted(tiny.model("gpt2"), ("gate", "up")) == [f"transformer.h.{i}.mlp.c_fc" for i in range(2)]


@pytest.mark.parametrize(
    ("case", "targets", "named"),
    [
        ("phi3", ("q", "o"), "not without k"),
        ("gpt2", ("q", "k"), "not without v"),
        ("llama", ("lm_head",), "q_proj"),
        ("llama", ("q", "experts"), "'experts'"),
        ("gpt2", ("gate",), "gate"),
    ],
)
def test_targets_that_mean_nothing(case, targets, named):
    with pytest.raises(PlanError, match=named):
        targeted(tiny.model(case), targets)


@torch.no_grad()
@pytest.mark.parametrize("case", tiny.CASES)
def test_the_model_computes_what_hooks_on_a_dense_one_do(case):
    model, dense = tiny.model(case), tiny.model(case)

    def masked(module, arguments):
        x = arguments[0]
        order = x.abs().unflatten(-1, (-1, 16)).argsort(-1, descending=True)[..., :8]
        groups = x.unflatten(-1, (-1, 16))
        return (torch.zeros_like(groups).scatter(-1, order, groups.gather(-1, order)).flatten(-2),)

    for module in linear_layers(dense).values():
        module.register_forward_pre_hook(masked)
    sparsify_activations(model, PLAIN)
    torch.testing.assert_close(tiny.logits(model), tiny.logits(dense))
    assert not torch.allclose(tiny.logits(model), tiny.logits(tiny.model(case)), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
@pytest.mark.parametrize(
    ("recipe", "dtype"), [(PLAIN, torch.bfloat16), (PERMUTED, torch.float32), (FULL, torch.bfloat16)]
)
def test_it_loads_as_it_was_saved(case, recipe, dtype, saved, tmp_path):
    model = saved(case, dtype)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sparsify_activations(model, recipe, batches(), Learning(epochs=1))
    mark(model, recipe)
    model.save_pretrained(tmp_path / "sparse")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse", dtype="auto", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(tiny.logits(again.eval()), tiny.logits(model))
    found = again.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    own = {name: tensor for name, tensor in found.items() if ".sparsity." in name}
    dtypes = {PLAIN: set(), FULL: {torch.float32}, PERMUTED: {torch.float32, torch.int64}}
    assert {tensor.dtype for tensor in own.values()} == dtypes[recipe]
    assert set(found) == set(weights) | set(own)
    again.save_pretrained(tmp_path / "again")
    third = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    assert torch.equal(tiny.logits(third.eval()), tiny.logits(model))
    generated = [m.generate(tiny.tokens(), max_new_tokens=4, do_sample=False, pad_token_id=0) for m in (model, third)]
    assert torch.equal(*generated)


def test_config_json_says_what_it_is(saved, tmp_path):
    model = saved("llama")
    sparsify_activations(model, PLAIN)
    mark(model, PLAIN)
    model.save_pretrained(tmp_path / "sparse")
    told = json.loads((tmp_path / "sparse" / "config.json").read_text())["quantization_config"]
    assert told.pop("quant_method") == "sparse_activations"
    assert Recipe.of(told) == PLAIN


def test_a_model_whose_layers_differ_in_width(tmp_path):
    config = per_layer_config(tiny.config("llama"), [{}, {"intermediate_size": 48}])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    sparsify_activations(model, PLAIN)
    mark(model, PLAIN)
    model.save_pretrained(tmp_path / "sparse")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse").eval()
    assert len(sparse_layers(again)) == 14
    assert torch.equal(tiny.logits(again), tiny.logits(model))


@torch.no_grad()
def test_calibration_is_behind_the_sparse_layers():
    """The threshold of the last layer is that of what the sparse layers before it give it."""
    recipe = Recipe(ratio=0.5, select="threshold")
    model = tiny.model("llama")
    sparsify_activations(model, recipe, batches())
    last = sparse_layers(model)["model.layers.1.self_attn.q_proj"]
    seen = []
    last.sparsity.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].abs().flatten()))
    for batch in batches():
        model(batch)
    values = torch.cat(seen)
    assert (values > last.sparsity.threshold).float().mean().item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
def test_learning_makes_held_out_text_better_and_is_the_same_for_a_seed():
    recipe, found = Recipe(n=2, m=4, transform="learnable"), []
    for seed in (0, 0, 1):
        model = tiny.model("llama")
        learned = sparsify_activations(model, recipe, batches() * 2, Learning(epochs=6, seed=seed))
        found.append({name: t for name, t in model.state_dict().items() if ".sparsity." in name})
        assert all(own["after"] <= own["before"] for own in learned.values())
        assert any(own["after"] < 0.98 * own["before"] for own in learned.values())
        assert not any(t.requires_grad for t in (*model.buffers(),))
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
    first, same, other = found
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert any(t.abs().max() > 0 for name, t in first.items() if name.endswith("shift"))
    assert any((t - 1).abs() > 0 for name, t in first.items() if name.endswith("gain"))


def test_text_that_gives_nan_names_the_layer():
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = torch.nan
    with pytest.raises(RunError, match="layer 1: input_layernorm gives NaN"):
        sparsify_activations(model, Recipe(n=8, m=16, scaling=True), batches())


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("case", tiny.CASES)
@pytest.mark.parametrize(
    ("pattern", "criterion"),
    [
        ({"n": 2, "m": 4}, "magnitude"),
        ({"n": 2, "m": 4}, "wanda"),
        ({"ratio": 0.75}, "magnitude"),
        ({"ratio": 0.5}, "wanda"),
    ],
)
def test_weights_that_go_and_stay(case, pattern, criterion):
    recipe = Recipe(sparse="weights", criterion=criterion, **pattern)
    model, dense = tiny.model(case), tiny.model(case)
    sparsify_weights(model, recipe, batches())
    before = linear_layers(dense)
    for name, layer in linear_layers(model).items():
        new, old = (m.weight.T if isinstance(m, Conv1D) else m.weight for m in (layer, before[name]))
        stays = new != 0
        assert torch.equal(new[stays], old[stays])
        if recipe.m:
            assert (stays.unflatten(1, (-1, 4)).sum(2) == 2).all()
        elif criterion == "wanda":
            assert (stays.sum(1) == new.shape[1] // 2).all()
        else:
            assert stays.sum() == int(new.numel() * 0.25 + 1e-6)
            assert old[stays].abs().min() >= old[~stays].abs().max()
        if recipe.m and criterion == "magnitude":
            groups = old.abs().unflatten(1, (-1, 4))
            assert torch.equal(stays.unflatten(1, (-1, 4)), groups >= groups.sort(-1).values[..., 2:3])
    others = {n for n, _ in dense.named_parameters()} - {f"{n}.weight" for n in before}
    assert all(torch.equal(model.get_parameter(n), dense.get_parameter(n)) for n in others)
    assert not sparse_layers(model)
    assert all(
        isinstance(m, nn.Linear | Conv1D) and not isinstance(m, SparseLinear) for m in linear_layers(model).values()
    )


@torch.no_grad()
def test_wanda_is_weight_times_norm_behind_the_sparse_layers():
    """https://arxiv.org/abs/2306.11695: |W_ij| · ‖x_j‖₂, every row for itself, the layers before it pruned already."""
    recipe = Recipe(sparse="weights", criterion="wanda", ratio=0.5)
    model, dense = tiny.model("llama"), tiny.model("llama")
    sparsify_weights(model, recipe, batches())
    half = tiny.model("llama")  # its first layer pruned, its second dense
    half.model.layers[0].load_state_dict(model.model.layers[0].state_dict())
    name, squares = "model.layers.1.self_attn.k_proj", 0.0
    seen = []
    half.get_submodule(name).register_forward_pre_hook(lambda _, a: seen.append(a[0].double().flatten(0, 1)))
    for batch in batches():
        half(batch)
    squares = torch.cat(seen).square().sum(0)
    scores = dense.get_submodule(name).weight.double().abs() * squares.sqrt()
    keep = scores.argsort(1, descending=True)[:, : scores.shape[1] // 2]
    expected = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, keep, True)
    assert torch.equal(model.get_submodule(name).weight != 0, expected)


def test_one_voice(saved, caplog):
    with caplog.at_level(logging.WARNING):
        sparsify_activations(saved("llama"), FULL, batches(), Learning(epochs=1))
    assert not caplog.records


@pytest.mark.parametrize(
    ("function", "recipe", "text", "error", "named"),
    [
        (sparsify_activations, Recipe(), True, UsageError, "n and m"),
        (sparsify_activations, Recipe(sparse="weights", n=2, m=4), True, UsageError, "about weights"),
        (sparsify_activations, Recipe(n=2, m=4, scaling=True), False, UsageError, "needs calibration text"),
        (sparsify_weights, Recipe(n=2, m=4), True, UsageError, "about activations"),
        (
            sparsify_weights,
            Recipe(sparse="weights", n=2, m=4, criterion="wanda"),
            False,
            UsageError,
            "calibration text",
        ),
    ],
)
def test_from_python_a_recipe_that_cannot_be_meant_is_refused(function, recipe, text, error, named):
    with pytest.raises(error, match=named):
        function(tiny.model("llama"), recipe, batches() if text else ())


def test_a_model_is_made_sparse_once():
    model = tiny.model("llama")
    sparsify_activations(model, PLAIN)
    with pytest.raises(PlanError, match="sparse activations already"):
        sparsify_activations(model, PLAIN)


@torch.no_grad()
def test_a_threshold_is_that_of_the_learned_shift():
    model, recipe = tiny.model("llama"), Recipe(ratio=0.5, select="threshold", transform="learnable")
    sparsify_activations(model, recipe, batches(), Learning(epochs=20, rate=0.2))
    first = sparse_layers(model)["model.layers.0.self_attn.q_proj"]
    assert first.sparsity.shift.abs().max() > 0.1
    kept = []
    first.sparsity.register_forward_pre_hook(lambda s, a: kept.append(s.kept(s.centred(a[0])[0]).float().mean()))
    for batch in batches():
        model(batch)
    assert torch.stack(kept).mean().item() == pytest.approx(0.5, abs=1e-3)
