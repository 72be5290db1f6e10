"""One decoder layer as a reconstruction sees it: the projections that read and write the stream, and their tokens."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, Axis
from llm_pruner.model.groups import Group, output_projection
from llm_pruner.model.layers import inside


@dataclass(frozen=True)
class Part:
    """Attention or MLP of one layer. Names are those of modules inside the layer.

    Attributes:
        input_projections: Those that read the normed stream.
        output_projection: o_proj or down_proj, which adds to the stream.
        groups: {axis: group}.
    """

    input_projections: tuple[str, ...]
    output_projection: str
    groups: Mapping[Axis, Group]


def parts_of(groups: Iterable[Group], layer: int) -> tuple[Part, Part]:
    """Return (attention, MLP) of a layer.

    Args:
        groups: The groups of the model.
        layer: The number of the layer.
    """
    own = {group.axis: group for group in groups if group.layer == layer}

    def part(*axes: Axis) -> Part:
        members = [member for axis in axes for member in own[axis].members]
        linear = [inside(m.parameter).removesuffix(".weight") for m in members if m.role == "linear" and not m.reads]
        output = inside(output_projection(own[axes[0]]).parameter).removesuffix(".weight")
        return Part(tuple(dict.fromkeys(linear)), output, {axis: own[axis] for axis in axes})

    return part(HEADS, KV_HEADS), part(MLP)


def matrix(module) -> torch.Tensor:
    """Return the weight of a linear layer as [out, in], whichever way round the module keeps it."""
    return module.weight.T if _transposed(module) else module.weight


def affine(module) -> torch.Tensor:
    """Return weight and bias of a linear layer as one matrix.

    Args:
        module: An nn.Linear or a Conv1D.

    Returns:
        float32 [out, in], or [out, in + 1] with the bias last where there is one.
    """
    weight = matrix(module).detach().float()
    return weight if module.bias is None else torch.cat([weight, module.bias.detach().float()[:, None]], 1)


@torch.no_grad()
def set_matrix(module, weight: torch.Tensor) -> None:
    """Make a matrix the weight of a linear layer.

    Args:
        module: An nn.Linear or a Conv1D.
        weight: [out, in], of whatever widths.
    """
    weight = weight.T if _transposed(module) else weight
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=module.weight.requires_grad)
    # Conv1D's
    if hasattr(module, "nf"):
        module.nf = weight.shape[1]


@torch.no_grad()
def set_affine(module, weight: torch.Tensor) -> None:
    """Set weight and bias of a linear layer from one matrix.

    Args:
        module: An nn.Linear or a Conv1D.
        weight: [out, in], or [out, in + 1] with the bias last where there is one.
    """
    if module.bias is not None:
        module.bias.copy_(weight[:, -1])
        weight = weight[:, :-1]
    module.weight.copy_(weight.T if _transposed(module) else weight)


def _transposed(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


class _Enough(Exception):
    """Everything that was wanted has been seen."""


@torch.no_grad()
def watch(run: Callable[[], torch.Tensor], inputs=(), outputs=(), whole: bool = False):
    """Run something and return inputs and outputs of modules.

    Args:
        run: What is run.
        inputs: Modules whose inputs are wanted.
        outputs: Modules whose outputs are wanted.
        whole: Whether the run goes on to its end when all are seen.

    Returns:
        The inputs, the outputs, and the result of `run`, which is None unless `whole`.
    """
    wanted = len(inputs) + len(outputs)
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def note(key, tensor):
        seen[key] = tensor.detach()
        if len(seen) == wanted and not whole:
            raise _Enough

    result = None
    with Hooks() as hooks:
        for place, module in enumerate(inputs):
            hooks.on_input(module, partial(note, ("in", place)))
        for place, module in enumerate(outputs):
            hooks.on_output(module, partial(note, ("out", place)))
        with contextlib.suppress(_Enough):
            result = run()
    return [seen["in", i] for i in range(len(inputs))], [seen["out", i] for i in range(len(outputs))], result
