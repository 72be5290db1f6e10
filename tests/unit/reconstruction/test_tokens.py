"""Calibration text in batches: which are held out, and which half has which use."""

import pytest
import torch

from llm_pruner.calibration.mixtures import order
from llm_pruner.reconstruction.tokens import RUN, STEP, Tokens, split


def numbered(count: int) -> list[torch.Tensor]:
    """Prompts of 2,000 tokens, a batch each, that say their number."""
    return [torch.full((2000,), number) for number in range(count)]


def numbers(batches) -> list[int]:
    return [int(batch[0, 0]) for batch in batches]


def rows(batches) -> list[int]:
    """Which text each prompt is of."""
    return [int(prompt[0]) for batch in batches for prompt in batch]


@pytest.mark.parametrize("prompts", [1, 2], ids=["one prompt a batch", "two prompts a batch"])
@pytest.mark.parametrize("counts", [(64, 64), (43, 43, 42), (32, 32, 32, 32), (32, 64, 32), (96, 32)], ids=str)
def test_of_a_mixture_each_part_is_of_all_texts(counts, prompts):
    """What is held out, each half of the rest, and the first of either, which is all that some measurements see."""
    texts = order(counts)
    tokens = split([torch.full((STEP // prompts,), text) for text in texts])
    one, other = (tokens.at(places) for places in tokens.halves())
    held = rows(tokens.held_out)
    parts = [held, held[:4], rows(one.fitted), rows(other.batches), rows(tokens.fitted)[:8], rows(one.fitted)[:16]]
    for part in parts:
        for text, count in enumerate(counts):
            assert abs(part.count(text) - len(part) * count / len(texts)) <= max(1.0, len(part) / 7)


@pytest.mark.parametrize("count", [2, 3, 16, 33])
def test_a_half_and_the_other_are_the_whole(count):
    tokens = split(numbered(count))
    one, other = tokens.halves()
    assert 0 <= len(tokens.at(one).fitted) - len(other) <= RUN
    assert sorted([*one, *other]) == list(range(len(tokens.batches)))
    assert numbers(tokens.at(one).held_out) == numbers(tokens.held_out)


def test_batches_by_number():
    tokens = Tokens([torch.tensor([[number]]) for number in range(3)], [False, True, False])
    assert numbers(tokens.at([0, 1]).batches) == [0, 1]
    assert tokens.at([0, 1]).held == [False, True]


@pytest.mark.parametrize("part", [2, 8])
def test_some_places_are_the_first_and_all_that_are_held_out(part):
    tokens = split(numbered(128))
    size = sum(batch.numel() for batch in tokens.fitted)
    some = tokens.at(places := tokens.places(size // part))
    assert places == sorted(places)
    assert numbers(some.held_out) == numbers(tokens.held_out)
    assert numbers(some.fitted) == numbers(tokens.fitted)[: len(tokens.fitted) // part]
    assert numbers(tokens.some(size // part)) == numbers(some.fitted)


def test_a_place_is_there_however_few_tokens_are_wanted():
    tokens = split(numbered(16))
    assert len(tokens.at(tokens.places(1)).fitted) == 1
    assert tokens.places(10**9) == list(range(len(tokens.batches)))
