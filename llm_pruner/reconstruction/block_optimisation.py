"""A whole decoder layer optimised towards the dense stream behind it: no labels, no other layer's activations.

Least squares finds each projection on its own; what softmax and the MLP's nonlinearity leave, a few epochs of Adam on
the layer's own output take. (Block-wise reconstruction as in BRECQ, Li et al. 2021, https://arxiv.org/abs/2102.05426.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

RATE = 0.04  # of a matrix's root mean square, per step, at first, for up to INPUTS rows or columns
INPUTS = 256  # of the smaller side; with more the step shrinks by the root: all may move an output the same way
RATE_OF_VECTORS = 0.002
WARM_UP = 8  # steps
BACK = 0.2
EPSILON = 1e-16  # Adam's: the gradients of a large model are smaller than the usual 1e-8
SCALE = 1024  # of the loss, for gradients that pass an lm_head in float16; Adam does not see it


@dataclass
class Block:
    """What is optimised. error(batch): how far what the module now gives for a batch is from what it should, a scalar.
    held[batch]: it is not trained on."""

    module: nn.Module
    error: Callable[[int], torch.Tensor]
    held: Sequence[bool]


def optimise(block: Block, like: nn.Module, epochs: int, scale: float = 1.0, seed: int = 0) -> tuple[float, float]:
    """Trains block.module in place; (error on the held-out batches before, after). The best state that they saw stays.

    like: the dense layer, whose weights' size says how large a step is. scale: of the steps. An epoch that makes the
    held-out error worse is taken back, and the steps are BACK times as large from there on.
    """
    parameters = [parameter.requires_grad_() for parameter in block.module.parameters()]
    sizes = {
        name: parameter.detach().float().square().mean().sqrt().item() for name, parameter in like.named_parameters()
    }
    rates = [
        RATE * sizes[name] * math.sqrt(INPUTS / max(INPUTS, min(parameter.shape)))
        if parameter.dim() > 1
        else RATE_OF_VECTORS
        for name, parameter in block.module.named_parameters()
    ]
    best, before = _state(parameters), held_error(block)
    lowest, steps = before, [batch for batch, held in enumerate(block.held) if not held]
    step, total, optimizer = 0, epochs * len(steps), None
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        if optimizer is None:
            optimizer = torch.optim.Adam([{"params": [p]} for p in parameters], betas=(0.9, 0.98), eps=EPSILON)
            warm = 0
        for place in torch.randperm(len(steps), generator=generator).tolist():
            warm, step = warm + 1, step + 1
            factor = scale * min(1.0, warm / WARM_UP) * (1.02 + 0.98 * math.cos(math.pi * step / total)) / 2
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            with torch.enable_grad():
                loss = SCALE * block.error(steps[place])
            optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=parameters)
            optimizer.step()
        error = held_error(block)
        if error < lowest:
            lowest, best = error, _state(parameters)
        else:
            _restore(parameters, best)
            scale, optimizer = scale * BACK, None
    _restore(parameters, best)
    for parameter in parameters:
        parameter.requires_grad_(False)
        parameter.grad = None
    return before, lowest


@torch.no_grad()
def _restore(parameters, state) -> None:
    for parameter, value in zip(parameters, state, strict=True):
        parameter.copy_(value)


def _state(parameters) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def held_error(block: Block) -> float:
    """Mean error over the held-out batches."""
    errors = [block.error(batch).item() for batch, held in enumerate(block.held) if held]
    return sum(errors) / len(errors)
