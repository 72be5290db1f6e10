"""Which entries stay: against a definition by sorting, one row at a time."""

import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pruner.sparsity import patterns
from llm_pruner.sparsity.patterns import kept_count, kept_n_of_m, kept_share


def highest(row: list[float], count: int) -> list[bool]:
    """Of equal ones the earlier."""
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
    return [i in order for i in range(len(row))]


rows = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=40)


@settings(deadline=None, max_examples=150)
@given(rows, st.integers(2, 8), st.data())
def test_n_of_m_is_the_definition(row, m, data):
    n = data.draw(st.integers(1, m - 1))
    expected = []
    for start in range(0, len(row), m):
        group = row[start : start + m]
        expected += highest(group, n if len(group) == m else math.ceil(n / m * len(group)))
    for few in (0, 2**15):  # counted, sorted
        with mock.patch.object(patterns, "FEW", few):
            assert kept_n_of_m(torch.tensor([row, row]), n, m).tolist() == [expected, expected]


@settings(deadline=None, max_examples=150)
@given(rows, st.sampled_from([0.01, 0.2, 0.25, 0.5, 0.7, 0.9, 0.99]))
def test_a_share_is_the_definition(row, ratio):
    count = kept_count(len(row), ratio)
    assert count == max(1, math.floor(len(row) * (1 - ratio) + 1e-6))
    assert kept_share(torch.tensor([row, row[::-1]]), ratio).tolist() == [
        highest(row, count),
        highest(row[::-1], count),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_tensors_of_any_dtype(dtype):
    scores = torch.rand(3, 5, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    kept = kept_n_of_m(scores, 8, 16)
    assert kept.shape == scores.shape
    assert (kept.unflatten(-1, (-1, 16)).sum(-1) == 8).all()
    groups = scores.unflatten(-1, (-1, 16)).float()
    low = groups.masked_fill(kept.unflatten(-1, (-1, 16)), math.inf).amin(-1)
    assert (low <= groups.masked_fill(~kept.unflatten(-1, (-1, 16)), math.inf).amin(-1)).all()


def test_not_a_number_stays():
    scores = torch.tensor([[1.0, math.nan, 3.0, 4.0]])
    for few in (0, 2**15):
        with mock.patch.object(patterns, "FEW", few):
            assert kept_n_of_m(scores, 2, 4)[0, 1]
    assert kept_share(scores, 0.5)[0, 1]
