"""η and v of sparse inputs, trained: a decoder layer at a time towards the dense model's stream behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llm_pruner.calibration.layerwise import Layer
from llm_pruner.sparsity.activations import SparseInput
from llm_pruner.sparsity.linear import sparse_layers

EPSILON = 1e-16  # Adam's: the gradients of a large model are smaller than the usual 1e-8


@dataclass(frozen=True)
class Learning:
    """epochs: passes over the text. rate: of a channel's typical size, per step, at first. held: one batch in so many
    is not trained on, and decides what stays."""

    epochs: int = 4
    rate: float = 0.02
    held: int = 4
    seed: int = 0


def learn(layer: Layer, stream: Sequence[torch.Tensor], learning: Learning) -> dict[str, float]:
    """Trains the layer's sparse inputs in place; {"before", "after": the error on held-out batches, as a share of
    what the layer adds to the stream}. stream: what enters it, for each batch; what should leave it are its outputs.
    """
    sparse = [own.sparsity for own in sparse_layers(layer.module).values()]
    count = len(stream)
    held = [batch for batch in range(count) if batch % learning.held == learning.held - 1] or [count - 1]
    trained = [batch for batch in range(count) if batch not in held] or held
    scale = _size(layer)

    def error(batch: int) -> torch.Tensor:
        found = layer.call(batch, stream[batch]).float()
        return (found - layer.outputs[batch].to(found.device).float()).square().mean() / scale

    def held_error() -> float:
        with torch.no_grad():
            return sum(error(batch).item() for batch in held) / len(held)

    parameters = [tensor for own in sparse for tensor in (own.shift, own.gain)]
    seen = _sizes(layer, stream[trained[0]], trained[0])
    sizes = [size for own in sparse for size in (seen[own], 1.0)]
    best, before = [p.clone() for p in parameters], held_error()
    lowest = before
    optimizer = torch.optim.Adam(
        [{"params": [p], "size": size} for p, size in zip(parameters, sizes, strict=True)],
        betas=(0.9, 0.98),
        eps=EPSILON,
    )
    generator = torch.Generator().manual_seed(learning.seed)
    step, total = 0, learning.epochs * len(trained)
    frozen = [p for p in layer.module.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        for parameter in parameters:
            parameter.requires_grad_()
        for _ in range(learning.epochs):
            for place in torch.randperm(len(trained), generator=generator).tolist():
                step += 1
                factor = learning.rate * (1.02 + 0.98 * math.cos(math.pi * step / total)) / 2
                for group in optimizer.param_groups:
                    group["lr"] = factor * group["size"]
                with torch.enable_grad():
                    loss = error(trained[place])
                optimizer.zero_grad(set_to_none=True)
                loss.backward(inputs=parameters)
                optimizer.step()
            if (now := held_error()) < lowest:
                lowest, best = now, [p.detach().clone() for p in parameters]
    finally:
        for parameter, value in zip(parameters, best, strict=True):
            parameter.requires_grad_(False).copy_(value)
            parameter.grad = None
        for parameter in frozen:
            parameter.requires_grad_()
    return {"before": before, "after": lowest}


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

    def measure(sparsity: SparseInput, arguments) -> None:
        found[sparsity] = sparsity.centred(arguments[0])[0].square().mean().sqrt().item()

    hooks = [own.sparsity.register_forward_pre_hook(measure) for own in sparse_layers(layer.module).values()]
    try:
        layer.call(batch, hidden)
    finally:
        for hook in hooks:
            hook.remove()
    return found
