"""Every pattern, criterion and transformation, against float64."""

import numpy as np
import pytest
import torch

from llm_pruner.config.recipe import Recipe
from llm_pruner.config.sparsify import validate_recipe
from llm_pruner.sparsity.calibration import Seen, measure
from llm_pruner.sparsity.linear import SparseLinear
from tests.support.sparse_cases import INPUTS, METHODS, OUTPUTS, PATTERNS, layer_of, legal, reference


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", METHODS, ids=lambda m: " ".join(str(v) for v in m.values()))
def test_every_method_is_its_formula(method, pattern):
    recipe = Recipe(**PATTERNS[pattern], **legal(pattern, method))
    validate_recipe(recipe)
    layer, text, generator, sizes = layer_of(recipe)
    x = torch.randn(9, INPUTS, generator=generator, dtype=torch.float64) * sizes
    expected = reference(layer, x, text)
    np.testing.assert_allclose(layer(x[None])[0].numpy(), expected, rtol=1e-5, atol=1e-5 * abs(expected).max())
    dense = layer.dense(x).numpy()
    assert abs(expected - dense).max() > 1e-2 * abs(dense).max()  # so that a dense layer would fail here


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=lambda m: " ".join(str(v) for v in m.values()))
def test_sequences_of_a_batch_do_not_see_each_other_and_causal_tokens_neither(method):
    recipe = Recipe(n=8, m=16, **method)
    layer, _, generator, sizes = layer_of(recipe)
    x = torch.randn(3, 9, INPUTS, generator=generator, dtype=torch.float64) * sizes
    together = layer(x)
    assert torch.allclose(together[1:2], layer(x[1:2]), rtol=1e-9)
    looks = not recipe.causal and (recipe.transform == "variance" or recipe.criterion == "l")
    alone = torch.allclose(together[:, :4], layer(x[:, :4]), rtol=1e-9)
    assert alone != looks


@torch.no_grad()
def test_scaling_is_that_of_weight_and_input():
    """Dividing the input and multiplying the weight's columns, as published, gives the same."""
    recipe = Recipe(n=8, m=16, transform="shift", scaling=True)
    layer, _, generator, sizes = layer_of(recipe)
    x = torch.randn(9, INPUTS, generator=generator, dtype=torch.float64) * sizes
    moved = torch.nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64)
    moved.weight.copy_(layer.weight * layer.sparsity.scale)
    moved.bias.copy_(layer.bias)
    plain = SparseLinear(moved, Recipe(n=8, m=16, transform="shift"))
    torch.testing.assert_close(layer(x), plain(x / layer.sparsity.scale))


@torch.no_grad()
@pytest.mark.parametrize(("n", "m"), [(2, 4), (8, 16), (3, 7)])
def test_a_permutation_is_n_of_m_of_channels_in_another_order(n, m):
    """Of input and weight moved to that order, where every group has its share of strong and of weak channels."""
    layer, text, generator, sizes = layer_of(Recipe(n=n, m=m, permutation=True))
    order = layer.sparsity.order
    assert sorted(order.tolist()) == list(range(INPUTS))
    moved = torch.nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64)
    moved.weight.copy_(layer.weight[:, order])
    moved.bias.copy_(layer.bias)
    x = torch.randn(2, 9, INPUTS, generator=generator, dtype=torch.float64) * sizes
    torch.testing.assert_close(layer(x), SparseLinear(moved, Recipe(n=n, m=m))(x[..., order]))
    whole = INPUTS // m * m
    strength = text.abs().mean(0)[order[:whole]].view(-1, m)
    assert strength[:, 0].min() >= strength[:, 1].max()  # the strongest are each in a group of its own
    assert strength.sum(1).std() < text.abs().mean(0)[:whole].view(-1, m).sum(1).std()


@torch.no_grad()
def test_a_threshold_reaches_its_ratio_on_the_text():
    recipe = Recipe(ratio=0.7, select="threshold")
    layer, text, *_ = layer_of(recipe)
    assert layer.sparsity.kept(layer.sparsity.centred(text)[0]).double().mean().item() == pytest.approx(0.3, abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_moves_where_everything_survives(pattern):
    """Inputs that are zero where they would go: sparse equals dense, in every dtype."""
    recipe = Recipe(**PATTERNS[pattern])
    for dtype in (torch.float32, torch.bfloat16):
        dense = torch.nn.Linear(INPUTS, OUTPUTS).to(dtype)
        layer = SparseLinear(dense, recipe)
        if layer.sparsity.threshold is not None:
            layer.sparsity.threshold.fill_(0.5)
        x = torch.randn(2, 5, INPUTS).to(dtype) + 2
        x = x * layer.sparsity.kept(x.float())
        assert torch.equal(layer(x), dense(x))


def test_dead_channels_do_not_break_scaling():
    layer = SparseLinear(torch.nn.Linear(16, 4), Recipe(n=2, m=4, scaling=True))
    with torch.no_grad():
        layer.weight[:, 3] = 0
        text = torch.randn(8, 16)
        text[:, 5] = 0
        seen = Seen(8)
        seen.add(text)
        measure(layer, seen)
        assert torch.isfinite(layer.sparsity.scale).all()
        assert (layer.sparsity.scale > 0).all()
        assert torch.isfinite(layer(torch.randn(3, 16))).all()
        assert torch.isfinite(layer(torch.zeros(3, 16))).all()


@torch.no_grad()
@pytest.mark.parametrize("transform", ["none", "variance", "shift"])
def test_a_token_of_zeros_gives_the_bias(transform):
    layer = SparseLinear(torch.nn.Linear(16, 4), Recipe(n=2, m=4, transform=transform))
    assert torch.equal(layer(torch.zeros(1, 3, 16)), layer.bias.expand(1, 3, 4))


@torch.no_grad()
def test_what_is_not_a_number_shows():
    layer = SparseLinear(torch.nn.Linear(16, 4), Recipe(n=2, m=4))
    x = torch.randn(1, 2, 16)
    x[0, 1, 5] = torch.nan
    assert layer(x)[0, 1].isnan().all()
    assert layer(x)[0, 0].isfinite().all()
