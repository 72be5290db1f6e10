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

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.weights import Weights
from llm_pruner.console import progress
from llm_pruner.errors import RunError
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.memory import give_back


@dataclass
class Layer:
    """One decoder layer on the walk: hooks on its modules see every batch that `run` pushes through it.

    Attributes:
        index: Its number.
        module: The layer itself.
        stream: The hidden states that enter, one tensor [prompts, tokens, hidden_size] for each batch.
        arguments: What else the layer is called with, for each batch.
        outputs: What left it when it was last run, for each batch; empty before.
        offload: Whether outputs wait in the host's memory.
    """

    index: int
    # of transformers
    module: Any
    stream: list[torch.Tensor]
    arguments: list[tuple[tuple, dict]]
    outputs: list[torch.Tensor] = field(default_factory=list)
    offload: bool = False

    @property
    def device(self) -> torch.device:
        """Where the layer is."""
        return next(self.module.parameters()).device

    def call(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for other hidden states.

        Args:
            batch: Number of the batch whose other arguments are used.
            hidden: [prompts, tokens, hidden_size].
        """
        arguments, options = self.arguments[batch]
        return self.module(hidden.to(self.device) if self.offload else hidden, *arguments, **options)

    @torch.no_grad()
    def run(self, observe: Callable[[torch.Tensor, torch.Tensor], object] | None = None) -> None:
        """Push the stream through the layer as it is now; running it again replaces the outputs.

        Args:
            observe: Called with what enters and what leaves, for each batch, when hooks have seen that one last.

        Raises:
            RunError: An output is not finite; the message names the layer.
        """
        self.outputs = []
        for batch, hidden in enumerate(self.stream):
            output = self.call(batch, hidden)
            if not torch.isfinite(output).all():
                name = first_not_finite(self.module, partial(self.call, batch, hidden))
                where = f"layer {self.index}: {name}" if name else f"layer {self.index}"
                raise not_finite(f"{where} gives NaN or Inf on the calibration data", output.dtype)
            if observe:
                observe(hidden, output)
            self.outputs.append(offloaded(output) if self.offload else output)


@torch.no_grad()
def first_not_finite(model: nn.Module, run: Callable[[], object]) -> str | None:
    """Return the name of the first module whose output is not finite; None where there is none.

    Args:
        model: The model, or a part of it.
        run: Uses it.
    """
    found: list[str] = []

    def check(name: str, output: Any) -> None:
        tensors = output if isinstance(output, tuple | list) else (output,)
        if not all(torch.isfinite(tensor).all() for tensor in tensors if isinstance(tensor, torch.Tensor)):
            found.append(name)

    with Hooks() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.on_output(module, partial(check, name))
        run()
    return found[0] if found else None


def not_finite(what: str, dtype: torch.dtype) -> RunError:
    """Return the error for something that is not finite, with what helps.

    Args:
        what: What is not finite, and where.
        dtype: What it was computed in.
    """
    name = str(dtype).removeprefix("torch.")
    wider = {"float16": "try `dtype=bfloat16` or float32", "bfloat16": "try `dtype=float32`"}
    return RunError(f"{what}, computed in {name}; {wider.get(name, 'its weights or its config.json must be wrong')}")


def cause_of_nan(model, prompts: torch.Tensor, what: str) -> RunError:
    """Return the error for a model that gives NaN or Inf; it names the first tensor or module that does.

    Args:
        model: The model.
        prompts: LongTensor [prompts, tokens], for some of which it does.
        what: What is not finite, for the message.
    """
    Weights(dict(model.named_parameters())).check_all_finite()
    for ids in prompts.split(1):
        read = partial(model, input_ids=ids.to(model.device), use_cache=False)
        if name := first_not_finite(model, read):
            return not_finite(f"{what}: {name} gives NaN or Inf", model.dtype)
    return not_finite(f"{what}: the logits hold NaN or Inf", model.dtype)


def offloaded(hidden: torch.Tensor) -> torch.Tensor:
    """Return hidden states that are on a GPU in the host's memory, page-locked so that they come back quickly.

    Others are returned as they are.
    """
    if hidden.device.type != "cuda":
        return hidden
    return torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True).copy_(hidden)


def walk(model, batches: Sequence[torch.Tensor], label: str = "calibrate", offload: bool = False) -> Iterator[Layer]:
    """Yield the decoder layers in order.

    The consumer may `run` a layer, look, change its weights and run it again: the layers behind see its last outputs. A
    layer that the consumer did not run is run by the walk.

    Args:
        model: In evaluation mode.
        batches: LongTensors [prompts, tokens].
        label: What the progress bar says.
        offload: Whether the streams wait in the host's memory, so that a GPU holds one batch at a time.

    Yields:
        Each layer, before it was run.

    Raises:
        RunError: Hidden states are not finite.
    """
    from accelerate.utils import send_to_device

    hidden, stream, called = None, [], []
    for batch in batches:
        hidden, arguments = enter(model, batch)
        if not torch.isfinite(hidden).all():
            raise not_finite("what enters layer 0 is NaN or Inf on the calibration data", hidden.dtype)
        stream.append(offloaded(hidden) if offload else hidden)
        called.append(arguments)
    # the last one would stay where the model is
    del hidden
    for index, module in enumerate(progress(decoder_layers(model), desc=label, unit="layer")):
        layer = Layer(index, module, stream, [arguments[index] for arguments in called], offload=offload)
        if offload:
            layer.arguments = send_to_device(layer.arguments, layer.device)
        yield layer
        if not layer.outputs:
            layer.run()
        stream = layer.outputs
        # sums and activations of one layer are of no use to the next
        give_back()


@torch.no_grad()
def enter(model, batch: torch.Tensor) -> tuple[torch.Tensor, list[tuple[tuple, dict]]]:
    """Return what enters the layers: the hidden states of the first, and for each layer its other arguments.

    Args:
        model: The model.
        batch: LongTensor [prompts, tokens].
    """
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
    """Make every decoder layer compute something else, as long as the context lasts.

    Args:
        model: The model.
        forward: What every layer computes.
    """
    with Hooks() as hooks:
        for layer in decoder_layers(model):
            hooks.replace(layer, forward)
        yield
