"""The cut: the only file that changes weights.

    model + groups + kept units + new config (+ biases)  →  a fresh model of the new config's class with the kept slices

The new model is built by its stock class, so every attribute that depends on a width is what it will be
after a reload. Tensors move over one by one, sliced on the device they live on; the old model is left empty.
"""

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HIDDEN
from llm_pruner.model.depth import renumbered
from llm_pruner.model.families import family_of
from llm_pruner.model.groups import Group, Member, emptied, group_of, kept_positions, output_projection
from llm_pruner.model.layers import layer_number
from llm_pruner.model.skeleton import meta_model, skeleton

# {group name: indices of the units that stay, ascending}
Kept = Mapping[str, list[int]]


@torch.no_grad()
def cut(
    model: Any, groups: Iterable[Group], kept: Kept, config: Any, biases: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Cut the model: a new one of the configuration's class with the slices that stay.

    `model` gives up its tensors on the way, so that memory holds little more than one model.

    Args:
        model: A model of transformers.
        groups: Its groups.
        kept: {group name: ascending indices of the units that stay}.
        config: The configuration of the pruned model.
        biases: {parameter: float32 [new hidden_size]} to add; biases that only the new class has start at 0.

    Returns:
        The pruned model, in the mode and on the devices of `model`.

    Raises:
        PlanError: Weights are offloaded in part, and cannot be sliced where they live.
    """
    groups = list(groups)
    parameters = dict(model.named_parameters())
    if offloaded := [name for name, p in parameters.items() if p.device.type == "meta"]:
        raise PlanError(f"{offloaded[0]} is offloaded; load the model on devices that hold it (`device_map`)")
    positions = kept_positions(groups, kept, {name: tuple(p.shape) for name, p in parameters.items()})
    scales = _width_corrections(model, groups, kept)
    gone = emptied(groups, lambda group: len(kept[group.name]))
    new = skeleton(config)
    owners = dict(new.named_modules())
    for name in tqdm(list(parameters), desc="cut", unit="tensor", delay=2, leave=False):
        old = parameters.pop(name)
        if not name.startswith(gone):
            tensor = old.data
            for axis, index in positions.get(name, {}).items():
                tensor = tensor.index_select(axis, index.to(tensor.device))
            if name in scales:
                factor, offset = scales[name]
                tensor = ((tensor.float() + offset) * factor - offset).to(tensor.dtype)
            place(new, name, tensor, old.requires_grad)
        old.data = torch.empty(0, dtype=old.dtype, device=old.device)
    for name, parameter in list(new.named_parameters()):
        if parameter.device.type == "meta":
            path, _, leaf = name.rpartition(".")
            bias = torch.zeros(parameter.shape, dtype=owners[path].weight.dtype, device=owners[path].weight.device)
            setattr(owners[path], leaf, nn.Parameter(bias, requires_grad=owners[path].weight.requires_grad))
    for name, bias in (biases or {}).items():
        parameter = new.get_parameter(name)
        parameter.copy_(parameter.float() + bias.to(parameter.device))
    return finish(new, model)


def place(new: nn.Module, name: str, tensor: torch.Tensor, requires_grad: bool = True) -> None:
    """Make a tensor the parameter of a name.

    Args:
        new: The model.
        name: The parameter's name, as in `named_parameters`.
        tensor: The values.
        requires_grad: Of the parameter.
    """
    path, _, leaf = name.rpartition(".")
    setattr(new.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=requires_grad))


def empty(model: nn.Module) -> None:
    """Take the tensors out of the model's parameters: their memory is free once nothing else shares them."""
    for parameter in model.parameters():
        parameter.data = torch.empty(0, dtype=parameter.dtype, device=parameter.device)


def own_outside(model: nn.Module) -> None:
    """Give what stands outside the layers memory of its own, so that emptied layers are free.

    Weights that were read as a map of their file keep all of it in memory as long as one of them is there.
    """
    for name, parameter in model.named_parameters():
        if layer_number(name) is None and parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()


@torch.no_grad()
def widened(model: Any, groups: Iterable[Group], kept: Kept, config: Any, layers: Sequence[int] | None = None) -> Any:
    """Return a model of the shape that one had before its cut, which does what the cut one does.

    What went is there again as zeros, also whole layers, which then change nothing. Layers share no memory with the
    cut model's.

    Args:
        model: The cut model.
        groups: Of the model before.
        kept: {group name: ascending indices of the units that stayed}.
        config: The configuration of the model before.
        layers: Those that stayed, None for all.
    """
    groups, small = list(groups), dict(model.named_parameters())
    new = skeleton(config)
    shapes = {name: tuple(parameter.shape) for name, parameter in meta_model(config).named_parameters()}
    everywhere = {group.name: list(range(group.units)) for group in groups} | dict(kept)
    positions = kept_positions(groups, everywhere, shapes)
    for name, shape in shapes.items():
        number = layer_number(name)
        own = name if layers is None else renumbered(name, layers)
        if own is None:
            place(new, name, torch.zeros(shape, dtype=model.dtype, device=model.device), requires_grad=False)
            continue
        tensor = small[own].data
        if number is not None:
            tensor = tensor.clone()
        for axis, index in positions.get(name, {}).items():
            size = (*tensor.shape[:axis], shape[axis], *tensor.shape[axis + 1 :])
            tensor = tensor.new_zeros(size).index_copy_(axis, index.to(tensor.device), tensor)
        place(new, name, tensor, small[own].requires_grad)
    return finish(new, model)


def finish(new: Any, model: Any) -> Any:
    """Make a model that has all its tensors like another one: ties, buffers, devices, generation config, mode.

    Args:
        new: The model.
        model: The other one.

    Returns:
        `new`, spread over devices as `model` was.
    """
    device_map = getattr(model, "hf_device_map", None)
    buffers_on = {name: buffer.device for name, buffer in model.named_buffers()}
    new.tie_weights()
    for name, buffer in new.named_buffers():
        buffer.data = buffer.data.to(buffers_on.get(name, model.device))
    if device_map and len(set(device_map.values())) > 1:
        from accelerate import dispatch_model

        new = dispatch_model(new, device_map)
    elif device_map:
        new.hf_device_map = device_map
    new.generation_config = copy.deepcopy(model.generation_config)
    return new.train(model.training)


@torch.no_grad()
def mask(
    model: Any, groups: Iterable[Group], kept: Kept, config: Any, biases: Mapping[str, torch.Tensor] | None = None
) -> Any:
    """Set to zero what `cut` would remove: same shapes as before, same outputs as the cut model.

    Args:
        model: A model of transformers, which gives up its tensors.
        groups: Its groups.
        kept: {group name: ascending indices of the units that stay}.
        config: The configuration of the same widths, with biases where there will be some.
        biases: {parameter: float32 [hidden channels that stay]} to add.

    Returns:
        The masked model.

    Raises:
        PlanError: A LayerNorm would see zeros that the cut model does not have.
    """
    groups = list(groups)
    parameters = dict(model.named_parameters())
    for group in groups:
        removed = group.removed(kept[group.name])
        for member in group.members if removed else ():
            if member.role == "layernorm":
                raise PlanError("a LayerNorm over zeros is not one over fewer channels; mask heads and mlp only")
            # nothing comes in on the channel, and the weight's zero need not be 0
            if member.role != "rmsnorm":
                _zero(parameters[member.parameter], member, removed)
    gone = emptied(groups, lambda group: len(kept[group.name]))
    for name, parameter in parameters.items():
        # the bias of an output projection too
        if name.startswith(gone):
            parameter.data.zero_()
    # of the channels that stay
    if biases:
        hidden = group_of(groups, HIDDEN)
        rows = torch.tensor(kept[hidden.name])
        biases = {
            name: bias.new_zeros(hidden.units).index_copy(0, rows.to(bias.device), bias)
            for name, bias in biases.items()
        }
    return cut(model, groups, {group.name: list(range(group.units)) for group in groups}, config, biases)


@contextlib.contextmanager
def silenced(parameters: Mapping[str, torch.Tensor], groups: Iterable[Group], kept: Kept) -> Iterator[None]:
    """Keep units from giving anything to the residual stream, as long as the context lasts.

    Args:
        parameters: {name: parameter} of the model.
        groups: Of heads and neurons.
        kept: {group name: indices of the units that stay}.
    """
    own = []
    for group in groups:
        member = output_projection(group)
        removed = group.removed(kept[group.name])
        weight = parameters[member.parameter].data
        positions = member.positions(torch.tensor(removed, dtype=torch.long)).to(weight.device)
        own.append((weight, member.dim, positions, weight.index_select(member.dim, positions)))
        _zero(parameters[member.parameter], member, removed)
    try:
        yield
    finally:
        for weight, axis, positions, columns in own:
            weight.index_copy_(axis, positions, columns)


def _zero(parameter: torch.Tensor, member: Member, units: list[int]) -> None:
    positions = member.positions(torch.tensor(units, dtype=torch.long)).to(parameter.device)
    parameter.data.index_fill_(member.dim, positions, 0)


def _width_corrections(model: Any, groups: list[Group], kept: Kept) -> dict[str, tuple[float, float]]:
    """{parameter: (factor, offset)}: the correction for the change of width, w' + offset = (w + offset)·factor.

    A norm divides by the root of the mean square, and removing silent channels raises that mean by d/d', so its
    weight grows by √(d/d'): exact for RMSNorm, for LayerNorm only as far as the mean is small. Where the
    embeddings are multiplied by √hidden_size, they grow alike; when they are also the lm_head, that
    has the effect of the final norm's correction, and the norm stays.
    """
    hidden = next((group for group in groups if group.axis == HIDDEN), None)
    width = len(kept[hidden.name]) if hidden else None
    if hidden is None or width is None or width == hidden.units:
        return {}
    family = family_of(model.config.model_type)
    factor, members = math.sqrt(hidden.units / width), hidden.members
    norms = [m.parameter for m in members if m.role in ("rmsnorm", "layernorm")]
    corrections = dict.fromkeys(norms, (factor, family.norm_offset))
    if family.scaled_embedding:
        embeddings = model.get_input_embeddings().weight
        names = {id(p): name for name, p in model.named_parameters()}
        corrections[names[id(embeddings)]] = (factor, 0.0)
        if model.get_output_embeddings().weight is embeddings:
            # members are in the model's order: the final norm is the last
            del corrections[norms[-1]]
    return corrections
