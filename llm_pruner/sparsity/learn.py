"""η and v of sparse inputs, trained: a decoder layer at a time towards the dense model's stream behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import Layer
from llm_pruner.reconstruction.block_optimisation import Descent, descend
from llm_pruner.sparsity.activations import SparseInput
from llm_pruner.sparsity.linear import sparse_layers


@dataclass(frozen=True)
class Learning:
    """How learnable shifts and gains are trained.

    Attributes:
        epochs: Passes over the text.
        rate: Of a channel's typical size, per step, at first.
        held: One batch in so many is not trained on, and decides what stays.
        seed: Of the order of the batches.
    """

    epochs: int = 4
    rate: float = 0.02
    held: int = 4
    seed: int = 0


def learn(layer: Layer, stream: Sequence[torch.Tensor], learning: Learning) -> dict[str, float]:
    """Train the layer's sparse inputs in place.

    Args:
        layer: A layer that has been run; what should leave it are its outputs.
        stream: What enters it, for each batch.
        learning: How.

    Returns:
        {"before", "after": the error on held-out batches, as a share of what the layer adds to the stream}.
    """
    sparse = [own.sparsity for own in sparse_layers(layer.module).values()]
    count, scale = len(stream), _size(layer)
    held = [batch % learning.held == learning.held - 1 for batch in range(count)]
    if not any(held):
        held[-1] = True
    # a single batch is both
    if all(held):
        held = [True, False]

    def error(batch: int) -> torch.Tensor:
        batch = min(batch, count - 1)
        found = layer.call(batch, stream[batch]).float()
        return (found - layer.outputs[batch].to(found.device).float()).square().mean() / scale

    first = min(held.index(False), count - 1)
    seen = _sizes(layer, stream[first], first)
    sizes = [size for own in sparse for size in (seen[own], 1.0)]
    frozen = [p for p in layer.module.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        parameters = [
            tensor.requires_grad_() for own in sparse for tensor in (own.shift, own.gain) if tensor is not None
        ]
        how = Descent(learning.epochs, scale=learning.rate, seed=learning.seed)
        before, after = descend(parameters, sizes, error, held, how)
    finally:
        for parameter in frozen:
            parameter.requires_grad_()
    return {"before": before, "after": after}


@torch.no_grad()
def _size(layer: Layer) -> float:
    """Mean square of what the layer adds to the dense stream."""
    added = [
        (after.float() - before.to(after.device).float()).square().mean()
        for before, after in zip(layer.stream, layer.outputs)
    ]
    return max(torch.stack([each.cpu() for each in added]).mean().item(), 1e-30)


@torch.no_grad()
def _sizes(layer: Layer, hidden: torch.Tensor, batch: int) -> dict[SparseInput, float]:
    """The root mean square of what each sparse input sees: a shift's steps are in proportion."""
    found: dict[SparseInput, float] = {}

    def measure(sparsity: SparseInput, given: torch.Tensor) -> None:
        found[sparsity] = sparsity.centred(given)[0].square().mean().sqrt().item()

    with Hooks() as hooks:
        for own in sparse_layers(layer.module).values():
            hooks.on_input(own.sparsity, partial(measure, own.sparsity))
        layer.call(batch, hidden)
    return found
