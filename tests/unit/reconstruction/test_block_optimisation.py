"""The optimisation of a layer as a whole, on toys whose exact solution is known."""

import copy
import math

import pytest
import torch
from torch import nn

from llm_pruner.reconstruction import block_optimisation as blockwise
from llm_pruner.reconstruction.block_optimisation import Block, held_error, optimise

IN, INNER, OUT = 8, 24, 6
BATCHES = 6


class Toy(nn.Module):
    """An MLP with a nonlinearity that no least squares sees through."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(IN, INNER), nn.Linear(INNER, OUT)

    def forward(self, x):
        return self.down(nn.functional.silu(self.up(x)))


def block_of(module: nn.Module, teacher: nn.Module, scale: float = 1.0, flip_held: bool = False) -> Block:
    """`scale` times what the teacher gives is wanted; with `flip_held` the opposite of that on the held-out batch."""
    inputs = [torch.randn(8, 16, IN, generator=torch.Generator().manual_seed(i)) for i in range(BATCHES)]
    with torch.no_grad():
        targets = [scale * teacher(x) for x in inputs]
    held = [batch == BATCHES - 1 for batch in range(BATCHES)]
    if flip_held:
        targets[-1] = -targets[-1]
    return Block(module, lambda i: (scale * module(inputs[i]) - targets[i]).square().mean(), held)


def disturbed(teacher: nn.Module, by: float = 0.3) -> nn.Module:
    module = copy.deepcopy(teacher)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += by * parameter.square().mean().sqrt() * torch.randn_like(parameter)
    return module


def test_a_reachable_solution_is_reached():
    teacher = Toy()
    module = disturbed(teacher)
    before, after = optimise(block_of(module, teacher), teacher, 60)
    assert after < 1e-2 * before
    other = torch.randn(50, IN)
    with torch.no_grad():
        expected, found = teacher(other), module(other)
    assert (found - expected).square().mean() < 0.02 * expected.var()


def test_what_is_returned_is_what_is_left():
    teacher = Toy()
    module = disturbed(teacher)
    block = block_of(module, teacher)
    before = held_error(block)
    assert optimise(block, teacher, 3) == (before, held_error(block))
    assert held_error(block) < before


@pytest.mark.parametrize("rate", [0.04, 3.0, 1e4])
def test_never_worse_than_before(monkeypatch, rate):
    """Where the held-out batch wants the opposite of the others, and where steps are far too large."""
    monkeypatch.setattr(blockwise, "RATE", rate)
    monkeypatch.setattr(blockwise, "RATE_OF_VECTORS", rate)
    teacher = Toy()
    module = copy.deepcopy(teacher)
    with torch.no_grad():
        module.down.weight *= 0.5
        module.down.bias *= 0.5
    state = copy.deepcopy(module.state_dict())
    block = block_of(module, teacher, flip_held=True)
    before, after = optimise(block, teacher, 3)
    assert before == after == held_error(block)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in state.items())


def test_an_epoch_that_is_worse_is_taken_back(monkeypatch):
    """The first, of steps five times too large; those after it, a fifth as large, go on from where it began."""
    teacher, calls = Toy(), []
    module = disturbed(teacher)
    own = blockwise.held_out
    monkeypatch.setattr(blockwise, "held_out", lambda *arguments: calls.append(own(*arguments)) or calls[-1])
    monkeypatch.setattr(blockwise, "RATE", 2.0)
    before, after = optimise(block_of(module, teacher), teacher, 6)
    assert calls[0] == before
    assert calls[1] > before
    assert after == min(calls) < before


def test_steps_shrink_when_an_epoch_was_taken_back(monkeypatch):
    """By BACK, each time; within an epoch they warm up, over all they fall by a cosine."""
    teacher, rates, errors = Toy(), [], iter([1.0, 2.0, 0.5, 3.0])
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1]
    )
    monkeypatch.setattr(blockwise, "held_out", lambda error, held: next(errors))
    optimise(block_of(disturbed(teacher), teacher), teacher, 3)
    size = blockwise.RATE * teacher.up.weight.square().mean().sqrt().item()
    warm = [*range(1, 6), *range(1, 11)]  # five steps an epoch; the second epoch was good
    scales = [1.0] * 5 + [blockwise.BACK] * 10
    fall = [(1.02 + 0.98 * math.cos(math.pi * place / 15)) / 2 for place in range(1, 16)]
    expected = [size * s * min(1, w / blockwise.WARM_UP) * f for s, w, f in zip(scales, warm, fall, strict=True)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("scale", [1e-5, 1e3])
def test_the_scale_of_the_stream_does_not_matter(scale):
    """In the first layers of a large model gradients are far smaller than Adam's usual epsilon."""
    teacher = Toy()
    start = disturbed(teacher)
    errors = []
    for own in (1.0, scale):
        before, after = optimise(block_of(copy.deepcopy(start), teacher, own), teacher, 3)
        errors.append(after / before)
    assert errors[0] < 0.5
    assert errors[1] == pytest.approx(errors[0], rel=0.02)


def test_steps_are_as_large_as_the_weights(monkeypatch):
    """One step moves a matrix by RATE of its root mean square, of the dense layer, times the first of WARM_UP."""
    teacher = Toy()
    module = disturbed(teacher)
    start, block, errors = copy.deepcopy(module), block_of(module, teacher), iter([2.0, 1.0])
    block.held = [batch > 0 for batch in range(BATCHES)]
    monkeypatch.setattr(blockwise, "held_out", lambda error, held: next(errors))
    optimise(block, teacher, 1)
    size = teacher.up.weight.square().mean().sqrt()
    moved = (module.up.weight - start.up.weight).abs() / (blockwise.RATE / blockwise.WARM_UP * size)
    factor = (1.02 + 0.98 * math.cos(math.pi)) / 2  # the first step is the last one, too
    torch.testing.assert_close(moved, torch.full_like(moved, factor), rtol=1e-2, atol=0)


def test_neither_gradients_nor_their_requirement_are_left():
    teacher = Toy()
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    module = disturbed(teacher)
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():  # as in a reconstruction
        optimise(block_of(module, teacher), teacher, 1)
    assert all(not p.requires_grad and p.grad is None for p in module.parameters())
    assert not any(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_same_seed_same_bytes():
    teacher = Toy()
    start, states = disturbed(teacher), []
    for seed in (0, 0, 1):
        module = copy.deepcopy(start)
        optimise(block_of(module, teacher), teacher, 2, seed=seed)
        states.append(module.up.weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_smaller_steps_move_less():
    teacher = Toy()
    start, moved = disturbed(teacher), []
    for scale in (1.0, 0.1):
        module = copy.deepcopy(start)
        block = block_of(module, teacher)
        optimise(block, teacher, 1, scale)
        moved.append((module.up.weight - start.up.weight).norm().item())
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=0.2)
