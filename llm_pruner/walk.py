"""A walk through the decoder layers, one after the other, with the hidden states of the calibration tokens.

Between two layers there is the stream, inside one the activations of one batch, and nothing else. It needs
no knowledge of families: the model itself says what its layers are called with.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from llm_pruner.errors import RunError


@dataclass
class Layer:
    """One decoder layer on the way: hooks on its modules see every batch that `run` pushes through it.

    stream: the hidden states that enter, one tensor [prompts, tokens, hidden_size] for each batch.
    arguments: what else the layer is called with, for each batch. aside: outputs are put aside.
    """

    index: int
    module: nn.Module
    stream: list[torch.Tensor]
    arguments: list[tuple[tuple, dict]]
    outputs: list[torch.Tensor] | None = None
    aside: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def call(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's output for `hidden` in place of the hidden states of batch number `batch`."""
        arguments, options = self.arguments[batch]
        return self.module(hidden.to(self.device) if self.aside else hidden, *arguments, **options)

    @torch.no_grad()
    def run(self) -> None:
        """Pushes the stream through the layer as it is now; running it again replaces the outputs."""
        outputs = (self.call(batch, hidden) for batch, hidden in enumerate(self.stream))
        self.outputs = [put_aside(hidden) if self.aside else hidden for hidden in outputs]


def decoder_layers(model) -> nn.ModuleList:
    """The model's decoder layers."""
    lists = (child for child in model.base_model.children() if isinstance(child, nn.ModuleList))
    return next(layers for layers in lists if len(layers) == model.config.num_hidden_layers)


def put_aside(hidden: torch.Tensor) -> torch.Tensor:
    """In the host's memory what is on a GPU, page-locked so that it comes back quickly; anything else as it is."""
    if hidden.device.type != "cuda":
        return hidden
    return torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True).copy_(hidden)


def walk(model, batches: Sequence[torch.Tensor], label: str = "calibrate", aside: bool = False) -> Iterator[Layer]:
    """Yields the decoder layers in order. batches: LongTensors [prompts, tokens]. aside: the streams wait in the host's
    memory, and a GPU holds one batch at a time.

    Whoever walks may `run` a layer, look, change its weights and run it again: the layers behind see its last
    outputs. One that was not run is run by the walk. RunError, naming the layer, for outputs that are not finite.
    """
    from accelerate.utils import send_to_device

    hidden, stream, called = None, [], []
    for batch in batches:
        hidden, arguments = enter(model, batch)
        stream.append(put_aside(hidden) if aside else hidden)
        called.append(arguments)
    del hidden  # the last one would stay where the model is
    for index, module in enumerate(tqdm(decoder_layers(model), desc=label, unit="layer", delay=2, leave=False)):
        layer = Layer(index, module, stream, [arguments[index] for arguments in called], aside=aside)
        if aside:
            layer.arguments = send_to_device(layer.arguments, layer.device)
        yield layer
        if layer.outputs is None:
            layer.run()
        stream = layer.outputs
        if not all(torch.isfinite(hidden).all() for hidden in stream):
            raise RunError(f"layer {index} gives NaN or Inf on the calibration data")


@torch.no_grad()
def enter(model, batch: torch.Tensor) -> tuple[torch.Tensor, list[tuple[tuple, dict]]]:
    """(hidden states that enter the first layer, for each layer its other arguments) of `batch` [prompts, tokens]."""
    first: list[torch.Tensor] = []
    arguments: list[tuple[tuple, dict]] = []

    def record(hidden_states, *rest, **options):
        first.append(hidden_states)
        arguments.append((rest, options))
        return hidden_states

    with replaced_layers(model, record):
        model.base_model(input_ids=batch.to(model.device), use_cache=False)
    return first[0], arguments


@contextlib.contextmanager
def replaced_layers(model, forward):
    """Every decoder layer computes `forward` instead of its own while this lasts."""
    layers = decoder_layers(model)
    own = [layer.__dict__.get("forward") for layer in layers]  # accelerate sets one on the instance
    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer, saved in zip(layers, own, strict=True):
            if saved is None:
                del layer.forward
            else:
                layer.forward = saved
