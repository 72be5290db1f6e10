"""Calibration text in batches: which are held out, and which half has which use."""

import pytest
import torch

from llm_pruner.reconstruction.tokens import Tokens, split


def numbered(count: int) -> list[torch.Tensor]:
    """Prompts of 2,000 tokens, a batch each, that say their number."""
    return [torch.full((2000,), number) for number in range(count)]


def numbers(batches) -> list[int]:
    return [int(batch[0, 0]) for batch in batches]


@pytest.mark.parametrize("texts", [2, 3, 4, 5])
def test_texts_that_alternate_are_in_both_halves_and_among_those_held_out(texts):
    tokens = split(numbered(64))
    for half in tokens.halves():
        shares = [sum(number % texts == text for number in numbers(half.fitted)) for text in range(texts)]
        assert min(shares) >= 0.5 * len(half.fitted) / texts
    out = [sum(number % texts == text for number in numbers(tokens.held_out)) for text in range(texts)]
    assert min(out) >= 1
    assert max(out) - min(out) <= 2


@pytest.mark.parametrize("count", [2, 3, 16, 33])
def test_halves_share_only_what_is_held_out(count):
    tokens = split(numbered(count))
    one, other = tokens.halves()
    assert sorted(numbers(one.fitted) + numbers(other.fitted)) == sorted(numbers(tokens.fitted))
    assert numbers(one.held_out) == numbers(other.held_out) == numbers(tokens.held_out)
    assert abs(len(one.fitted) - len(other.fitted)) <= 1


def test_batches_by_number():
    tokens = Tokens([torch.tensor([[number]]) for number in range(3)], [False, True, False])
    assert numbers(tokens.at([0, 1]).batches) == [0, 1]
    assert tokens.at([0, 1]).held == [False, True]
