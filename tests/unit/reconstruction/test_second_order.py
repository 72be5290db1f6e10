"""Optimal brain surgeon against least squares over what is left, solved anew from the tokens in float64."""

import itertools
import subprocess
import sys

import pytest
import torch

from llm_pruner.reconstruction.second_order import ROUNDS, Surgeon, keep_heads, keep_neurons

TOKENS, OUT = 60, 4


def tokens(inputs: int, seed: int = 0):
    """x with correlated columns, the last of them ones, and y: float64."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.double)  # noqa: E731
    x = draw(TOKENS, inputs) @ (torch.eye(inputs, dtype=torch.double) + 0.4 * draw(inputs, inputs))
    x[:, -1] = 1.0
    return x, draw(TOKENS, OUT) + x @ draw(inputs, OUT)


def equations(x, y):
    return x.T @ x / len(x), y.T @ x / len(x)


def fitted(x, y, columns) -> tuple[torch.Tensor, float]:
    """(weight [out, columns], mean squared error) of the least squares over some of the columns."""
    own = x[:, columns]
    weight = torch.linalg.lstsq(own, y).solution
    return weight.T, ((y - own @ weight).square().sum() / len(x)).item()


def columns_of(units, width: int, intercept: int | None = None) -> list[int]:
    columns = [unit * width + place for unit in units for place in range(width)]
    return columns if intercept is None else [*columns, intercept]


@pytest.mark.parametrize(("width", "units"), [(1, 12), (3, 4)])
def test_costs_are_what_the_error_rises_by(width, units):
    """Before anything is gone, and when something is."""
    x, y = tokens(width * units + 1)
    surgeon, last = Surgeon(*equations(x, y), width, units), width * units
    for _ in range(2):
        _, error = fitted(x, y, columns_of(surgeon.alive, width, last))
        for unit, cost in zip(surgeon.alive, surgeon.costs().tolist(), strict=True):
            rest = [other for other in surgeon.alive if other != unit]
            assert cost == pytest.approx(fitted(x, y, columns_of(rest, width, last))[1] - error, rel=1e-6)
        surgeon.remove([1])


@pytest.mark.parametrize(("width", "units", "gone"), [(1, 12, [[0, 5, 11], [2]]), (3, 4, [[1], [0, 2]])])
def test_removal_is_the_least_squares_of_what_is_left(width, units, gone):
    """gone: places among those that are left. The column of ones stays at the end."""
    x, y = tokens(width * units + 1)
    surgeon, last = Surgeon(*equations(x, y), width, units), width * units
    alive, before = list(range(units)), fitted(x, y, range(last + 1))[1]
    for places in gone:
        surgeon.remove(places)
        alive = [unit for place, unit in enumerate(alive) if place not in places]
        weight, error = fitted(x, y, columns_of(alive, width, last))
        assert surgeon.alive == alive
        torch.testing.assert_close(surgeon.weight, weight)
        assert surgeon.error == pytest.approx(error - before, rel=1e-6)


def test_split_units_are_parts_of_what_they_were():
    x, y = tokens(13)
    surgeon = Surgeon(*equations(x, y), 6, 2)
    surgeon.remove([0])
    surgeon.split(3)
    assert (surgeon.alive, surgeon.width) == ([3, 4, 5], 2)
    surgeon.remove_one_of_each(1)
    weight, error = fitted(x, y, columns_of(surgeon.alive, 2, 12))
    torch.testing.assert_close(surgeon.weight, weight)
    assert surgeon.error == pytest.approx(error - fitted(x, y, range(13))[1], rel=1e-6)


def test_a_copy_goes_its_own_way():
    x, y = tokens(13)
    surgeon = Surgeon(*equations(x, y), 1, 12)
    surgeon.remove([3])
    state = list(surgeon.alive), surgeon.error, surgeon.weight.clone()
    surgeon.copy().keep(4)
    assert (surgeon.alive, surgeon.error) == state[:2]
    assert torch.equal(surgeon.weight, state[2])


def test_one_at_a_time_is_the_greedy_choice():
    x, y = tokens(12)
    kept, alive = keep_neurons(*equations(x, y), 11, 11 - ROUNDS), list(range(11))
    for _ in range(ROUNDS):
        rests = [[other for other in alive if other != unit] for unit in alive]
        alive = min(rests, key=lambda rest: fitted(x, y, [*rest, 11])[1])
    assert kept == alive


@pytest.mark.parametrize("count", [1, 9, 20, 39, 40])
def test_count_is_met_in_rounds(count):
    x, y = tokens(41)
    kept = keep_neurons(*equations(x, y), 40, count)
    assert len(kept) == count
    assert kept == sorted(set(kept))


@pytest.mark.parametrize(("units", "count"), [(12, 11), (12, 4), (64, 60), (64, 50), (64, 32), (64, 8)])
def test_equal_columns_do_not_go_together(units, count):
    """Each alone is free, as the other compensate for it: one goes first, and what is left is what matters most.

    Also where a round takes several: to 32 of 64 in eight rounds, four at a time.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1000, units, generator=generator, dtype=torch.double)
    weight = torch.randn(OUT, units, generator=generator, dtype=torch.double)
    x[:, 8], weight[:, 3] = x[:, 3], 3.0
    normal, right = equations(x, x @ weight.T)
    normal += 1e-2 * torch.eye(units, dtype=torch.double)
    alone = Surgeon(normal, right, 1, units).costs()
    assert set(alone.argsort()[:2].tolist()) == {3, 8}
    assert len({3, 8} & set(keep_neurons(normal, right, units, count))) == 1


def test_a_round_takes_them_one_after_the_other():
    """Half of the units in one round are those that go one at a time."""
    x, y = tokens(25)
    assert Surgeon(*equations(x, y), 1, 24).keep(12, rounds=1) == Surgeon(*equations(x, y), 1, 24).keep(12, rounds=12)


def test_what_nothing_else_gives_stays():
    """Neurons 0, 1 and 2 give much, but any two of them the third's; neuron 4 gives little, and nothing else that."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, 5, generator=generator, dtype=torch.double)
    x[:, 0] = x[:, 1] + x[:, 2] + 0.01 * x[:, 0]
    weight = torch.tensor([[9.0, 9.0, 9.0, 1.0, 0.3]], dtype=torch.double)
    assert {3, 4} < set(keep_neurons(*equations(x, x @ weight.T), 5, 4))


def test_singular_equations():
    """More columns than tokens, and some of them zeros, which go first."""
    x, y = tokens(80)
    x[:, [4, 30]] = 0.0
    assert torch.linalg.cholesky_ex(equations(x, y)[0]).info
    kept = keep_neurons(*equations(x, y), 79, 77)
    assert kept == [unit for unit in range(79) if unit not in (4, 30)]


@pytest.mark.parametrize(("count", "each"), [(4, 3), (2, 3), (4, 2), (3, 1), (1, 1)])
def test_heads_stay_in_equal_number_in_every_group_that_stays(count, each):
    x, y = tokens(4 * 3 * 2 + 1)
    groups, heads = keep_heads(*equations(x, y), 2, 4, 3, count, each)
    assert (len(groups), groups) == (count, sorted(set(groups)))
    assert heads == sorted(set(heads))
    assert [head // 3 for head in heads] == [group for group in groups for _ in range(each)]


def test_useless_heads_and_groups_go():
    """Nothing depends on group 1, nor on heads 2, 6 and 10 of groups 0, 2 and 3."""
    x, _ = tokens(4 * 3 * 2 + 1)
    used = torch.randn(25, OUT, dtype=torch.double)
    used[columns_of([2, 3, 4, 5, 6, 10], 2)] = 0.0
    y = x @ used
    assert keep_heads(*equations(x, y), 2, 4, 3, 3, 3)[0] == [0, 2, 3]
    assert keep_heads(*equations(x, y), 2, 4, 3, 3, 2) == ([0, 2, 3], [0, 1, 7, 8, 9, 11])


def test_without_groups_heads_are_their_own():
    x, _ = tokens(13)
    used = torch.randn(13, OUT, dtype=torch.double)
    used[columns_of([1, 4], 2)] = 0.0
    assert keep_heads(*equations(x, x @ used), 2, 6, 1, 4, 1) == ([0, 2, 3, 5], [0, 2, 3, 5])


def test_greedy_heads_are_near_the_best_of_all():
    x, y = tokens(13)
    before = fitted(x, y, range(13))[1]
    rises = sorted(fitted(x, y, columns_of(kept, 2, 12))[1] - before for kept in itertools.combinations(range(6), 4))
    kept, _ = keep_heads(*equations(x, y), 2, 6, 1, 4, 1)
    assert fitted(x, y, columns_of(kept, 2, 12))[1] - before <= rises[1]


WIDE_HEADS = """
import torch
torch.set_num_threads(2)
torch.manual_seed(0)
from llm_pruner.reconstruction.second_order import Surgeon
x, y = torch.randn(1000, 577, dtype=torch.double), torch.randn(1000, 576, dtype=torch.double)
surgeon = Surgeon(x.T @ x, y.T @ x, 192, 3)
found, alone = surgeon.costs(), []
for unit in range(3):
    gone = slice(192 * unit, 192 * unit + 192)
    taken = surgeon.weight[:, gone]
    alone.append((taken.T * torch.linalg.solve(surgeon.inverse[gone, gone], taken.T)).sum())
torch.testing.assert_close(found, torch.stack(alone))
"""


def test_wide_heads_where_the_number_of_threads_was_set():
    """MKL's LU of several matrices at once gives nonsense then, in torch 2.13 at least."""
    subprocess.run([sys.executable, "-c", WIDE_HEADS], check=True, timeout=300)
