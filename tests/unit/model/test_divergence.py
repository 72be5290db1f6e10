"""KL of a few tokens at a time, against the formula written out and the gradients that autograd finds for it."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from llm_pruner.model import divergence
from llm_pruner.model.divergence import kl

SHAPES = {"tokens": (5, 7), "prompts": (2, 3, 7), "one": (1, 7), "none": (0, 7)}


def logits(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    wanted, found = 3 * torch.randn(2, *shape, generator=generator)
    return wanted.to(dtype), found.to(dtype).requires_grad_()


def expected(wanted, found, temperature):
    p, q = (Categorical(logits=one.double() / temperature, validate_args=False) for one in (wanted, found))
    return temperature**2 * kl_divergence(p, q)


@pytest.mark.parametrize("piece", [1, 15, 2**18])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_and_gradients_are_the_formulas(shape, temperature, piece, monkeypatch):
    monkeypatch.setattr(divergence, "PIECE", piece)
    wanted, found = logits(shape)
    weights = torch.rand(shape[:-1])
    values, formula = kl(wanted, found, temperature), expected(wanted, found, temperature)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), formula, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad((own * weights).sum(), found)[0] for own in (values, formula)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_the_logits_alone(dtype):
    wanted, found = logits((64, 40), dtype)
    values, formula = kl(wanted, found), expected(wanted, found, 1.0)
    torch.testing.assert_close(values.double(), formula, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(own.sum(), found)[0] for own in (values, formula)]
    assert gradients[0].dtype == dtype
    torch.testing.assert_close(*gradients)


def test_a_constant_changes_no_distribution():
    wanted, found = logits((5, 7))
    assert kl(wanted, wanted + 3.0).abs().max() < 1e-5
    assert kl(wanted, found).min() > 1e-3


def test_the_logits_that_are_wanted_get_no_gradient():
    wanted, found = logits((5, 7))
    wanted.requires_grad_()
    kl(wanted, found).sum().backward()
    assert wanted.grad is None
    assert found.grad.abs().max() > 0
    with torch.no_grad():
        assert not kl(wanted, found).requires_grad
