"""The loss against a distribution's likeliest tokens: exact for all of them, below the divergence for fewer."""

import pytest
import torch

from llm_pruner.model.divergence import kl
from llm_pruner.recovery.likeliest import LEAST, likeliest_loss, likeliest_of, packed, record, unpacked

VOCABULARY = 40


def pair(n=64, seed=0):
    """Logits of a student and of a teacher that is sure of some tokens."""
    generator = torch.Generator().manual_seed(seed)
    teacher = 3 * torch.randn(n, VOCABULARY, generator=generator)
    return teacher + torch.randn(n, VOCABULARY, generator=generator), teacher


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_all_tokens_give_the_divergence_and_its_gradient(temperature):
    student, teacher = pair()
    student.requires_grad_()
    expected = kl(teacher, student, temperature)
    found = likeliest_loss(student, likeliest_of(teacher, VOCABULARY, temperature), temperature)
    assert torch.allclose(found, expected, atol=1e-5)
    gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in (expected, found)]
    assert torch.allclose(*gradients, atol=1e-5)
    assert gradients[0].abs().max() > 0.1


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_fewer_tokens_give_a_lower_bound_that_rises(temperature):
    student, teacher = pair()
    full = kl(teacher, student, temperature)
    bounds = [likeliest_loss(student, likeliest_of(teacher, k, temperature), temperature) for k in (1, 4, 16, 39, 40)]
    for lower, higher in zip(bounds, [*bounds[1:], full]):
        assert (lower <= higher + 1e-5).all()
        assert (lower >= -1e-6).all()
    assert bounds[0].mean() < 0.8 * full.mean(), "there is something to lose"
    assert bounds[2].mean() > 0.8 * full.mean()


def test_the_formula():
    """p = (½, ¼, ⅛, ⅛), q uniform, k = 2: ½·log 2 + ¼·log 1 + ¼·log ½."""
    teacher = torch.tensor([[0.5, 0.125, 0.25, 0.125]]).log()
    found = likeliest_loss(torch.zeros(1, 4), likeliest_of(teacher, 2))
    assert found.item() == pytest.approx((0.5 - 0.25) * torch.tensor(2.0).log().item(), abs=1e-6)


def test_a_student_that_differs_by_one_factor_outside_loses_nothing():
    _, teacher = pair()
    known = likeliest_of(teacher, 5)
    factor = torch.ones_like(teacher).scatter(-1, known.tokens, 0.0)
    student = teacher + 0.7 * factor
    assert torch.allclose(likeliest_loss(student, known), kl(teacher, student), atol=1e-5)


def test_the_rest_teaches_too():
    """A student is drawn away from the tokens that are not known where it gives them too much."""
    _, teacher = pair(n=1)
    known = likeliest_of(teacher, 5)
    student = torch.zeros_like(teacher).requires_grad_()
    likeliest_loss(student, known).sum().backward()
    outside = torch.ones(VOCABULARY, dtype=torch.bool).scatter(0, known.tokens[0], False)
    assert (student.grad[0][outside] > 0).all()


@pytest.mark.parametrize(("vocab_size", "width"), [(VOCABULARY, 2), (2**16, 2), (2**16 + 1, 4)])
def test_records_take_as_many_bytes_as_the_vocabulary_needs(vocab_size, width):
    assert record(7, vocab_size).itemsize == 7 * (2 + width) + 4
    known = likeliest_of(torch.arange(float(vocab_size))[None] / vocab_size, 3)
    found = unpacked(packed(known, record(3, vocab_size)), torch.device("cpu"))
    assert found.tokens.tolist() == [[vocab_size - 1, vocab_size - 2, vocab_size - 3]]


@pytest.mark.parametrize("k", [3, VOCABULARY])
def test_what_is_read_is_what_was_written(k):
    known = likeliest_of(pair()[1], k)
    found = unpacked(packed(known, record(k, VOCABULARY)), torch.device("cpu"))
    assert torch.equal(found.tokens, known.tokens)
    assert torch.equal(found.log_rest, known.log_rest)
    assert torch.allclose(found.log_p, known.log_p, rtol=1e-3, atol=1e-3)
    assert torch.allclose(found.log_p.exp().sum(-1) + found.log_rest.exp(), torch.ones(64), atol=1e-6)


def test_tokens_that_cannot_follow():
    """Logits of −∞, as of a padded vocabulary, are no mass to learn, and no nan."""
    student, teacher = pair(n=2)
    teacher[:, 10:] = -torch.inf
    for k in (12, 20, VOCABULARY):
        known = unpacked(packed(likeliest_of(teacher, k), record(k, VOCABULARY)), torch.device("cpu"))
        assert known.log_p.min() < LEAST / 2
        expected = kl(teacher[:, :10], student[:, :10]) - student.log_softmax(-1)[:, :10].logsumexp(-1)
        assert torch.allclose(likeliest_loss(student, known), expected, atol=2e-3)
