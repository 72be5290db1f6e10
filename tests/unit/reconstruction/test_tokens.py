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
    one, other = tokens.half()
    for half in (one.fitted, other):
        shares = [sum(number % texts == text for number in numbers(half)) for text in range(texts)]
        assert min(shares) >= 0.5 * len(half) / texts
    out = [sum(number % texts == text for number in numbers(tokens.held_out)) for text in range(texts)]
    assert min(out) >= 1
    assert max(out) - min(out) <= 2


@pytest.mark.parametrize("count", [2, 3, 16, 33])
def test_a_half_and_the_other_are_the_whole(count):
    tokens = split(numbered(count))
    one, other = tokens.half()
    assert abs(len(one.fitted) - len(other)) <= 1
    both = one.and_fitted(other)
    assert numbers(one.held_out) == numbers(both.held_out) == numbers(tokens.held_out)
    assert sorted(numbers(both.fitted)) == sorted(numbers(tokens.fitted))


def test_batches_by_number():
    tokens = Tokens([torch.tensor([[number]]) for number in range(3)], [False, True, False])
    assert numbers(tokens.at([0, 1]).batches) == [0, 1]
    assert tokens.at([0, 1]).held == [False, True]


@pytest.mark.parametrize("part", [2, 8])
def test_some_places_are_of_both_texts_and_of_all_that_is_held_out(part):
    one, other = split(numbered(128)).half()
    tokens = one.and_fitted(other)
    size = sum(batch.numel() for batch in tokens.fitted)
    some = tokens.at(places := tokens.places(size // part))
    assert places == sorted(places)
    assert numbers(some.held_out) == numbers(tokens.held_out)
    assert len(some.fitted) == len(tokens.fitted) // part
    assert numbers(tokens.some(size // part)) == numbers(some.fitted)
    odd = sum(number % 2 for number in numbers(some.fitted))
    assert 0.3 < odd / len(some.fitted) < 0.7


def test_a_place_is_there_however_few_tokens_are_wanted():
    tokens = split(numbered(16))
    assert len(tokens.at(tokens.places(1)).fitted) == 1
    assert tokens.places(10**9) == list(range(len(tokens.batches)))
