"""A whole decoder layer optimised towards the dense stream behind it: no labels, no other layer's activations.

Least squares finds each projection on its own; what softmax and the MLP's nonlinearity leave, a few epochs of Adam on
the layer's own output take. (Block-wise reconstruction as in BRECQ, Li et al. 2021, https://arxiv.org/abs/2102.05426.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

# of a matrix's root mean square, per step, at first, for up to INPUTS rows or columns
RATE = 0.04
# of the smaller side; with more the step shrinks by the root: all may move an output the same way
INPUTS = 256
RATE_OF_VECTORS = 0.002
# steps
WARM_UP = 8
BACK = 0.2
# Adam's: the gradients of a large model are smaller than the usual 1e-8
EPSILON = 1e-16
# of the loss, for gradients that pass an lm_head in float16; Adam does not see it
SCALE = 1024


@dataclass
class Block:
    """What is optimised.

    Attributes:
        module: The module.
        error: Returns, for a batch, how far what the module now gives is from what it should: a scalar tensor.
        held: For each batch, whether it is held out.
    """

    module: nn.Module
    error: Callable[[int], torch.Tensor]
    held: Sequence[bool]


@dataclass(frozen=True)
class Descent:
    """How an error is brought down.

    Attributes:
        epochs: Passes over the batches that are not held out, in random order.
        scale: Of the steps.
        warm_up: Steps in which the rate rises, at the start and after an epoch was taken back.
        back: An epoch that makes the held-out error worse is taken back, and the steps are this many times as large
            from there on; None: it is kept, and only the best state counts in the end.
        loss_scale: Of the loss, for gradients that pass a narrow dtype; Adam does not see it.
        seed: Of the order.
    """

    epochs: int
    scale: float = 1.0
    warm_up: int = 0
    back: float | None = None
    loss_scale: float = 1.0
    seed: int = 0


def optimise(block: Block, like: nn.Module, epochs: int, scale: float = 1.0, seed: int = 0) -> tuple[float, float]:
    """Train `block.module` in place, and keep the best state that the held-out batches saw.

    Args:
        block: What is optimised.
        like: The dense layer, whose weights' size says how large a step is.
        epochs: Passes over the fitted batches.
        scale: Of the steps.
        seed: Of the order of the batches.

    Returns:
        The error on the held-out batches before and after.
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
    how = Descent(epochs, scale, WARM_UP, BACK, SCALE, seed)
    return descend(parameters, rates, block.error, block.held, how)


def descend(
    parameters: Sequence[torch.Tensor],
    rates: Sequence[float],
    error: Callable[[int], torch.Tensor],
    held: Sequence[bool],
    how: Descent,
) -> tuple[float, float]:
    """Bring an error down by Adam, and keep the best state that the held-out batches saw.

    Args:
        parameters: What is changed in place; they require gradients, and do not afterwards.
        rates: Of each parameter, the step at first; it falls as a cosine.
        error: Returns the error of a batch, a scalar tensor.
        held: For each batch, whether it is held out.
        how: Epochs, schedule and seed.

    Returns:
        The error on the held-out batches before and after.
    """
    best, before = _state(parameters), held_out(error, held)
    lowest, steps = before, [batch for batch, out in enumerate(held) if not out]
    step, total, optimizer, scale, warm = 0, how.epochs * len(steps), None, how.scale, 0
    generator = torch.Generator().manual_seed(how.seed)
    for _ in range(how.epochs):
        if optimizer is None:
            optimizer = torch.optim.Adam([{"params": [p]} for p in parameters], betas=(0.9, 0.98), eps=EPSILON)
            warm = 0
        for place in torch.randperm(len(steps), generator=generator).tolist():
            warm, step = warm + 1, step + 1
            rising = min(1.0, warm / how.warm_up) if how.warm_up else 1.0
            factor = scale * rising * (1.02 + 0.98 * math.cos(math.pi * step / total)) / 2
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            with torch.enable_grad():
                loss = how.loss_scale * error(steps[place])
            optimizer.zero_grad(set_to_none=True)
            loss.backward(inputs=parameters)
            optimizer.step()
        now = held_out(error, held)
        if now < lowest:
            lowest, best = now, _state(parameters)
        elif how.back is not None:
            _restore(parameters, best)
            scale, optimizer = scale * how.back, None
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
    """Return the mean error over the held-out batches."""
    return held_out(block.error, block.held)


@torch.no_grad()
def held_out(error: Callable[[int], torch.Tensor], held: Sequence[bool]) -> float:
    """Return the mean of an error over the held-out batches.

    Args:
        error: Returns a scalar for the number of a batch.
        held: For each batch, whether it is held out.
    """
    errors = [error(batch).item() for batch, out in enumerate(held) if out]
    return sum(errors) / len(errors)
