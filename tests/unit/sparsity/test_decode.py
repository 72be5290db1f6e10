"""One token at a time: embedding_bag's and the kernel's result is that of plain torch. The kernel runs in Triton's
interpreter, in a process of its own: what `TRITON_INTERPRET` changes is decided at the import."""

import copy
import os
import sys

import pytest
import torch

from llm_pruner.config.recipe import Recipe
from llm_pruner.sparsity.calibration import sparsify_activations
from llm_pruner.sparsity.decode import Bags, attach, by_columns, speed_up
from llm_pruner.sparsity.linear import SparseLinear, sparse_layers
from llm_pruner.sparsity.semi import is_2_4, semi_structured
from llm_pruner.sparsity.weights import sparsify_weights
from tests.support import tiny
from tests.support.sparse_cases import INPUTS, METHODS, PATTERNS, PERMUTED, layer_of, legal, reference

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run by test_the_kernel_in_the_interpreter")


def tokens(sizes, generator, dtype, count: int = 1 if INTERPRETED else 2) -> list[torch.Tensor]:
    return [
        (torch.randn(1, 1, INPUTS, generator=generator, dtype=torch.float64) * sizes).to(dtype) for _ in range(count)
    ]


def exactly(layer: SparseLinear, x: torch.Tensor) -> torch.Tensor:
    """In float64, with the tensors that the layer has."""
    double = copy.deepcopy(layer)
    double.decode = None
    double.weight.data, double.bias.data = double.weight.data.double(), double.bias.data.double()
    return double(x.double())


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", [*METHODS, PERMUTED], ids=lambda m: " ".join(str(v) for v in m.values()))
def test_a_token_is_what_plain_torch_makes_of_it(method, pattern):
    """By the kernel in the interpreter, by embedding_bag elsewhere: 1e-5 in float32, and in bfloat16 1e-3 of the kernel
    where no transformation makes plain torch round its input. Where one does, and for embedding_bag, which cuts off
    what others round: from float64 at most twice as far as plain torch, or two of the last bits of bfloat16."""
    recipe = Recipe(**PATTERNS[pattern], **legal(pattern, method))
    for dtype in (torch.float32, torch.bfloat16):
        layer, _, generator, sizes = layer_of(recipe, dtype)
        layer.sparsity.float()
        inputs = tokens(sizes, generator, dtype)
        expected = [layer(x) for x in inputs]
        assert attach(layer)
        assert isinstance(layer.decode, Bags) != INTERPRETED
        exact = INTERPRETED and recipe.transform == "none" and not recipe.scaling
        for x, y in zip(inputs, expected, strict=True):
            found = layer(x)
            assert found.dtype == dtype
            assert found.shape == y.shape
            if dtype == torch.float32 or exact:
                assert error(found, y) <= (1e-5 if dtype == torch.float32 else 1e-3)
            else:
                truth = exactly(layer, x)
                assert error(found, truth) <= max(2 * error(y, truth), 2**-7)


@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", [METHODS[0], {"transform": "learnable", "criterion": "wanda", "scaling": True}])
def test_columns_that_do_not_survive_are_not_read(method, pattern):
    """Even where they are not numbers."""
    layer, text, generator, sizes = layer_of(Recipe(**PATTERNS[pattern], **method), torch.float32)
    x = tokens(sizes, generator, torch.float64, 1)[0]
    expected = torch.from_numpy(reference(layer, x[0], text))
    layer.sparsity.float()
    by_columns(layer)
    attach(layer)  # what η adds is known by now
    gone = ~layer.sparsity.kept(layer.sparsity.centred(x)[0]).flatten()
    assert gone.any()
    layer.weight.data.T[gone] = torch.nan
    assert error(layer(x.float())[0], expected) < 1e-4


@torch.no_grad()
def test_not_a_number_in_the_input_shows():
    for recipe in (Recipe(n=2, m=4), Recipe(ratio=0.5, select="threshold"), Recipe(ratio=0.5)):
        layer, *_ = layer_of(recipe, torch.float32)
        layer.sparsity.float()
        attach(layer)
        x = torch.randn(1, 1, INPUTS)
        x[0, 0, 7] = torch.nan
        assert layer(x).isnan().all()


@torch.no_grad()
@pytest.mark.parametrize("case", ["llama", "llama_multi_head", "phi3", "gpt2"])
def test_a_whole_model_decodes_the_same(case):
    """With biases, fused projections and Conv1D; the prompt goes through plain torch."""
    recipe = Recipe(n=8, m=16, transform="shift", causal=True)
    plain, fast = tiny.model(case), tiny.model(case)
    for model in (plain, fast):
        sparsify_activations(model, recipe)
    assert speed_up(fast) == len(sparse_layers(fast)) > 0
    torch.testing.assert_close(tiny.logits(fast), tiny.logits(plain))
    prompt = tiny.tokens(1, 5)
    found = []
    for model in (plain, fast):
        cache = model(prompt, use_cache=True).past_key_values
        found.append(model(tiny.tokens(1, 1), past_key_values=cache).logits)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    used = [name for name, p in fast.named_parameters() if name.endswith("weight") and p.dim() == 2]
    assert used
    assert all(fast.get_parameter(name).shape == plain.get_parameter(name).shape for name in used)


def test_a_fast_model_saves_like_any_other(tmp_path):
    from transformers import AutoModelForCausalLM

    from llm_pruner.sparsity.saved import mark

    model = tiny.model("llama")
    sparsify_activations(model, Recipe(n=8, m=16))
    mark(model, Recipe(n=8, m=16))
    model.save_pretrained(tmp_path / "sparse")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sparse").eval()
    assert {layer.decode is not None for layer in sparse_layers(loaded).values()} == {True}, "without being asked"
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(tiny.logits(again), tiny.logits(model))


@interpreted
@torch.no_grad()
def test_the_kernel_for_every_tile():
    """Shares that end inside a tile, tiles wider than the layer, one part and more parts than tiles."""
    from llm_pruner.sparsity.launch import TILES, Kernel, Tile

    layer = SparseLinear(torch.nn.Linear(208, 100), Recipe(n=8, m=16))
    x = torch.randn(1, 1, 208)
    expected = layer(x)
    by_columns(layer)
    for tile in (*TILES[::5], Tile(16, 16, 1, 1), Tile(128, 64, 64, 4)):
        assert error(Kernel(layer, tile)(x), expected) < 1e-5


@interpreted
@torch.no_grad()
def test_the_kernel_gives_the_same_bits_each_time():
    layer, _, generator, sizes = layer_of(Recipe(n=2, m=4), torch.float32)
    layer.sparsity.float()
    attach(layer)
    x = tokens(sizes, generator, torch.float32, 1)[0]
    assert torch.equal(layer(x), layer(x))


def test_two_of_four():
    weight = torch.zeros(4, 8)
    weight[:, [0, 3, 5, 6]] = 1.0
    assert is_2_4(weight)
    weight[2, 4] = 1.0
    assert not is_2_4(weight)
    assert not is_2_4(torch.zeros(4, 6))


def test_semi_structured_weights_stay_dense_where_the_device_has_none():
    model = tiny.model("llama")
    sparsify_weights(model, Recipe(sparse="weights", n=2, m=4))
    expected = tiny.logits(model)
    assert semi_structured(model) == 0
    assert torch.equal(tiny.logits(model), expected)


def test_moved_elsewhere_a_layer_decodes_as_it_can_there():
    layer = layer_of(Recipe(n=8, m=16, transform="shift"), torch.float32)[0]
    assert attach(layer)
    first, x = layer.decode, torch.randn(1, 1, INPUTS)
    layer.to(torch.bfloat16)
    assert layer.decode is not first
    with torch.no_grad():
        assert error(layer(x.bfloat16()), layer.dense(layer.sparsity(x.bfloat16()))) < 0.02
    layer.to("meta")
    assert layer.decode is None


def test_a_kernel_that_cannot_run_leaves_plain_torch(monkeypatch, caplog):
    from llm_pruner.sparsity import decode

    monkeypatch.setattr(decode, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "llm_pruner.sparsity.launch", None)
    decode.kernel_runs.cache_clear()
    assert not decode.kernel_runs(torch.device("cpu"))
    assert "plain torch" in caplog.text
    decode.kernel_runs.cache_clear()
