"""A walk through the decoder layers, one after the other, with the hidden states of the calibration tokens.

Between two layers there is the stream, inside one the activations of one batch, and nothing else. It needs
no knowledge of families: the model itself says what its layers are called with.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from llm_pruner.calibration.weights import Weights
from llm_pruner.errors import RunError
from llm_pruner.model.layers import decoder_layers


@dataclass
class Layer:
    """One decoder layer on the way: hooks on its modules see every batch that `run` pushes through it.

    stream: the hidden states that enter, one tensor [prompts, tokens, hidden_size] for each batch.
    arguments: what else the layer is called with, for each batch. offload: outputs wait in the host's memory.
    """

    index: int
    module: Any  # of transformers
    stream: list[torch.Tensor]
    arguments: list[tuple[tuple, dict]]
    outputs: list[torch.Tensor] = field(default_factory=list)
    offload: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def call(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's output for `hidden` in place of the hidden states of batch number `batch`."""
        arguments, options = self.arguments[batch]
        return self.module(hidden.to(self.device) if self.offload else hidden, *arguments, **options)

    @torch.no_grad()
    def run(self) -> None:
        """Pushes the stream through the layer as it is now; running it again replaces the outputs. RunError, naming the
        layer, for outputs that are not finite.
        """
        self.outputs = []
        for batch, hidden in enumerate(self.stream):
            output = self.call(batch, hidden)
            if not torch.isfinite(output).all():
                name = first_not_finite(self.module, partial(self.call, batch, hidden))
                where = f"layer {self.index}: {name}" if name else f"layer {self.index}"
                raise not_finite(f"{where} gives NaN or Inf on the calibration data", output.dtype)
            self.outputs.append(offloaded(output) if self.offload else output)


@torch.no_grad()
def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """The name of the first module in `model` that gives NaN or Inf while `run` uses it."""
    found: list[str] = []

    def watching(name: str):
        def hook(_, __, output):
            tensors = output if isinstance(output, tuple | list) else (output,)
            if not all(torch.isfinite(tensor).all() for tensor in tensors if isinstance(tensor, torch.Tensor)):
                found.append(name)

        return hook

    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_hook(watching(name)).remove)
        run()
    return found[0] if found else None


def not_finite(what: str, dtype: torch.dtype) -> RunError:
    """The error for `what` computed in `dtype`, with what helps."""
    name = str(dtype).removeprefix("torch.")
    wider = {"float16": "try `dtype=bfloat16` or float32", "bfloat16": "try `dtype=float32`"}
    return RunError(f"{what}, computed in {name}; {wider.get(name, 'its weights or its config.json must be wrong')}")


def cause_of_nan(model, prompts: torch.Tensor, what: str) -> RunError:
    """The error for `what` when the model gives NaN or Inf for some of `prompts` [prompts, tokens]: it names the first
    tensor or module that does.
    """
    Weights(dict(model.named_parameters())).check_all_finite()
    for ids in prompts.split(1):
        read = partial(model, input_ids=ids.to(model.device), use_cache=False)
        if name := first_not_finite(model, read):
            return not_finite(f"{what}: {name} gives NaN or Inf", model.dtype)
    return not_finite(f"{what}: the logits hold NaN or Inf", model.dtype)


def offloaded(hidden: torch.Tensor) -> torch.Tensor:
    """In the host's memory what is on a GPU, page-locked so that it comes back quickly; anything else as it is."""
    if hidden.device.type != "cuda":
        return hidden
    return torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True).copy_(hidden)


def walk(model, batches: Sequence[torch.Tensor], label: str = "calibrate", offload: bool = False) -> Iterator[Layer]:
    """Yields the decoder layers in order. batches: LongTensors [prompts, tokens]. offload: the streams wait in the
    host's memory, and a GPU holds one batch at a time.

    Whoever walks may `run` a layer, look, change its weights and run it again: the layers behind see its last
    outputs. One that was not run is run by the walk. RunError for what is not finite.
    """
    from accelerate.utils import send_to_device

    hidden, stream, called = None, [], []
    for batch in batches:
        hidden, arguments = enter(model, batch)
        if not torch.isfinite(hidden).all():
            raise not_finite("what enters layer 0 is NaN or Inf on the calibration data", hidden.dtype)
        stream.append(offloaded(hidden) if offload else hidden)
        called.append(arguments)
    del hidden  # the last one would stay where the model is
    for index, module in enumerate(tqdm(decoder_layers(model), desc=label, unit="layer", delay=2, leave=False)):
        layer = Layer(index, module, stream, [arguments[index] for arguments in called], offload=offload)
        if offload:
            layer.arguments = send_to_device(layer.arguments, layer.device)
        yield layer
        if not layer.outputs:
            layer.run()
        stream = layer.outputs


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
