"""Weight times gradient, summed along every axis, without ever holding the autograd graph of the whole model.

LLM-Pruner (Ma et al., NeurIPS 2023, https://arxiv.org/abs/2305.11627) estimates what the loss changes by when
w_k goes to zero by its first-order Taylor term w_k · ∂L/∂w_k. It is found here layer by layer: forwards by the
walk, then the end of the model, the layers from the last to the first, and the entrance.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from llm_pruner.calibration.layerwise import Layer, not_finite, replaced_layers, walk
from llm_pruner.calibration.weights import Weights
from llm_pruner.console import progress


@dataclass(frozen=True)
class Products:
    """Weight times gradient of one parameter, summed for each of its axes: float32 [length of the axis] on the CPU.

    Attributes:
        absolute: Σ |w·g| over the other axes.
        signed: Σ w·g over the other axes.
    """

    absolute: tuple[torch.Tensor, ...]
    signed: tuple[torch.Tensor, ...]


@torch.enable_grad()
def weight_gradient_products(model, batches: Sequence[torch.Tensor]) -> dict[str, Products]:
    """Measure weight times gradient of every parameter w, with g = ∂L/∂w.

    L is the mean next-token cross-entropy over all predicted tokens; g is summed over the batches, and over both uses
    of a tied tensor, before |w·g| is taken. Parameters without a gradient have zeros. `requires_grad` and `grad` are
    afterwards what they were.

    Memory beside the model's: the hidden states between the layers (tokens × hidden × layers, where the layers are),
    then either the logits of one prompt or one layer's gradients (float32) and its activations for one batch.

    Args:
        model: In evaluation mode, on any devices.
        batches: LongTensors [prompts, tokens], of at least two tokens.

    Returns:
        {parameter, as in `model.named_parameters()`: its products}.

    Raises:
        RunError: Weights, gradients or the output of a layer are not finite; the message names the first of them.
    """
    named = dict(model.named_parameters())
    Weights(named).check_all_finite()
    uses = Counter(parameter for _, parameter in model.named_parameters(remove_duplicate=False))
    tied = {parameter for parameter, count in uses.items() if count > 1}
    with _requiring_grad(named.values()):
        layers = list(walk(model, batches))
        inside = {parameter for layer in layers for parameter in layer.module.parameters()}
        outside = {name: parameter for name, parameter in named.items() if parameter not in inside}
        gradients = Gradients(named, predicted=sum(batch[:, 1:].numel() for batch in batches))

        upstream = _through_end(model, batches, layers[-1].outputs, gradients, outside.values())
        gradients.finish(name for name, parameter in outside.items() if parameter not in tied)
        for layer in progress(layers[::-1], desc="gradients", unit="layer"):
            own = set(layer.module.parameters())
            upstream = _through_layer(layer, upstream, gradients, own)
            gradients.finish(name for name, parameter in named.items() if parameter in own)
        _through_entrance(model, batches, upstream, gradients, outside.values())
        gradients.finish(outside)
    return gradients.products


class Gradients:
    """Sums of gradients over the batches, in float32 (float64 for float64 parameters), until they are finished.

    Args:
        parameters: {name: parameter}.
        predicted: Number of predicted tokens. Gradients are added as sums over tokens and divided at the end: divided
            first, float16 would lose the smallest.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], predicted: int) -> None:
        self.parameters = parameters
        self.predicted = predicted
        self.products = {name: _zeros(parameter) for name, parameter in parameters.items()}
        self._sums: dict[torch.Tensor, torch.Tensor] = {}

    def add(self, output, upstream, parameters: Iterable[nn.Parameter], hidden: Sequence[torch.Tensor] = ()):
        """Add the gradients of an output, and return those of hidden states.

        Args:
            output: What is differentiated.
            upstream: The gradient that comes from behind, like `output`; None of a scalar.
            parameters: Whose gradients are added.
            hidden: Whose gradients are returned.
        """
        inputs = [*hidden, *parameters]
        found = torch.autograd.grad(output, inputs, upstream, allow_unused=True)
        for parameter, gradient in zip(inputs[len(hidden) :], found[len(hidden) :], strict=True):
            if gradient is None:
                continue
            if parameter not in self._sums:
                dtype = torch.promote_types(parameter.dtype, torch.float32)
                self._sums[parameter] = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
            self._sums[parameter] += gradient
        return found[: len(hidden)]

    def finish(self, names: Iterable[str]) -> None:
        """Make the products of parameters that were given gradients, and forget the gradients."""
        for name in names:
            parameter = self.parameters[name]
            if parameter not in self._sums:
                continue
            product = self._sums.pop(parameter).div_(self.predicted).mul_(parameter.detach())
            if not torch.isfinite(product.sum()):
                raise not_finite(f"the gradient of {name} is NaN or Inf", parameter.dtype)
            signed = _sums(product)
            self.products[name] = Products(absolute=_sums(product.abs_()), signed=signed)


def _sums(product: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """For each axis, Σ over the others."""
    # so that a vector has an axis to sum over
    wide = product[None]
    axes = range(1, wide.dim())
    return tuple(wide.sum([0, *(other for other in axes if other != axis)]).float().cpu() for axis in axes)


def _zeros(parameter: torch.Tensor) -> Products:
    zeros = tuple(torch.zeros(length) for length in parameter.shape)
    return Products(absolute=zeros, signed=zeros)


@contextlib.contextmanager
def _requiring_grad(parameters: Iterable[nn.Parameter]):
    """All parameters require gradients while this lasts."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _through_end(model, batches, stream, gradients, parameters) -> list[torch.Tensor]:
    """From the summed loss through the head and the final norm: the gradients of `stream`, the last layer's outputs.

    The model itself computes the logits, with every layer giving back the stream; one prompt at a time.
    """
    upstream = []
    for batch, hidden in zip(progress(batches, desc="loss", unit="batch"), stream, strict=True):
        rows = []
        for prompt, row in zip(batch.split(1), hidden.split(1), strict=True):
            row = row.detach().requires_grad_()
            with replaced_layers(model, lambda *_, row=row, **__: row):
                logits = model(input_ids=prompt.to(model.device), use_cache=False).logits[0, :-1]
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            loss = F.cross_entropy(wide, prompt[0, 1:].to(wide.device), reduction="sum")
            if not torch.isfinite(loss):
                raise not_finite("the loss is NaN or Inf on the calibration data", logits.dtype)
            rows += gradients.add(loss, None, parameters, [row])
        upstream.append(torch.cat(rows))
    return upstream


def _through_layer(layer: Layer, upstream, gradients, parameters) -> list[torch.Tensor]:
    """From the gradients of the layer's outputs to those of its inputs; it is run again with a graph."""
    downstream = []
    for batch, hidden in enumerate(layer.stream):
        hidden = hidden.detach().requires_grad_()
        downstream += gradients.add(layer.call(batch, hidden), upstream[batch], parameters, [hidden])
    return downstream


def _through_entrance(model, batches, upstream, gradients, parameters) -> None:
    """From the gradients of the hidden states that enter the first layer to the embeddings."""
    for batch, gradient in zip(batches, upstream, strict=True):
        entered: list[torch.Tensor] = []

        def record(hidden_states, *_, entered=entered, **__):
            entered.append(hidden_states)
            return hidden_states

        with replaced_layers(model, record):
            model.base_model(input_ids=batch.to(model.device), use_cache=False)
        gradients.add(entered[0], gradient, parameters)
