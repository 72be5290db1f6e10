"""What stands before the first layer and behind the last, in a reconstruction: embeddings, final norm, lm_head."""

import copy
from collections.abc import Sequence

import torch

from llm_pruner.model.axes import HIDDEN
from llm_pruner.model.groups import Group, group_of
from llm_pruner.model.layers import layer_number
from llm_pruner.model.surgery import place
from llm_pruner.model.untie import is_tied
from llm_pruner.reconstruction.least_squares import Moments, fit
from llm_pruner.reconstruction.rotation import is_layer_norm, norm_bias, norm_scale, set_norm

# of the channels' mean variance: rounding, in place of a channel that never changes
SILENT = 1e-12


def outside(groups: Sequence[Group]):
    """Return (names of the embeddings' weights, name of the final norm's weight)."""
    hidden = group_of(groups, HIDDEN)
    own = [member for member in hidden.members if layer_number(member.parameter) is None]
    embeddings = [member.parameter for member in own if member.role == "embedding"]
    return list(dict.fromkeys(embeddings)), [m.parameter for m in own if m.role.endswith("norm")][-1]


@torch.no_grad()
def set_entrance(new, model, groups: Sequence[Group], basis: torch.Tensor, factor: float) -> None:
    """Set the embeddings to E·P·factor, so that Pᵀ of the dense stream enters the first layer.

    Args:
        new: The pruned model.
        model: The dense model.
        groups: Its groups.
        basis: P, [hidden_size, new hidden_size].
        factor: What embeddings that are scaled at run time are multiplied by besides.
    """
    for name in outside(groups)[0]:
        old = model.get_parameter(name)
        place(new, name, (old.to(basis.dtype) @ basis.to(old.device) * factor).to(old.dtype))


@torch.no_grad()
def set_end(
    new,
    model,
    groups: Sequence[Group],
    dense,
    pruned,
    held,
    basis,
    offset: float,
    factor: float,
    least_squares: bool = True,
) -> None:
    """Set the final norm and lm_head for the output of the last pruned layer. lm_head is fitted, unless it is tied.

    Args:
        new: The pruned model.
        model: The dense model.
        groups: Its groups.
        dense: The output of the last dense layer, for each batch.
        pruned: The output of the last pruned layer, for each batch.
        held: For each batch, whether it is held out.
        basis: P [hidden_size, new hidden_size] of a smaller stream, or None.
        offset: Norms multiply by (offset + weight).
        factor: What the embeddings were multiplied by; a tied lm_head has it in it too.
        least_squares: Whether anything is fitted.
    """
    name = outside(groups)[1].removesuffix(".weight")
    theirs, tied = model.get_submodule(name), is_tied(model)
    dtype, device, width = theirs.weight.dtype, theirs.weight.device, pruned[0].shape[-1]
    basis = None if basis is None else basis.to(theirs.weight.device)
    norm = new.get_submodule(name)
    if basis is not None:
        streams = [hidden for hidden, out in zip(dense, held, strict=True) if not out]
        _set_narrow_norm(new, name, theirs, norm_scale(streams, basis, is_layer_norm(theirs)), width, offset)
    elif tied or not least_squares:
        return
    else:
        norm = copy.deepcopy(theirs).float()
    fitted, held_out = Moments(is_layer_norm(theirs)), Moments(is_layer_norm(theirs))
    for batch, out in enumerate(held):
        sums = held_out if out else fitted
        sums.add(norm(pruned[batch].to(device).float()), theirs(dense[batch].to(device)))
    if tied:
        slope, intercept = _projected(fitted, basis / factor)
        _set_diagonal(norm, slope, intercept, offset)
    else:
        prior = _prior(theirs, basis, width, offset, fitted.intercept)
        weight = fit(fitted, held_out, prior).weight if least_squares else prior
        if fitted.intercept:
            weight, shift = weight[:, :-1], weight[:, -1]
            if norm.bias is not None:
                _move_bias(new, name, norm, theirs, norm_bias(weight, shift), basis is not None)
        _set_head(new, model, weight)
    if basis is not None:
        norm.to(dtype)


@torch.no_grad()
def set_rotated_end(new, model, groups: Sequence[Group], basis: torch.Tensor, offset: float, scale: float) -> None:
    """Set the final norm, and lm_head to W·diag(w)·P with the final norm's weight w: nothing is fitted.

    Args:
        new: The pruned model, whose lm_head is its own.
        model: The dense model.
        groups: Its groups.
        basis: P [hidden_size, new hidden_size].
        offset: Norms multiply by (offset + weight).
        scale: What the new norm multiplies by.
    """
    name = outside(groups)[1].removesuffix(".weight")
    theirs, width = model.get_submodule(name), basis.shape[1]
    _set_narrow_norm(new, name, theirs, scale, width, offset)
    _set_head(new, model, _prior(theirs, basis.to(theirs.weight.device), width, offset, intercept=False))
    new.get_submodule(name).to(theirs.weight.dtype)


def _set_narrow_norm(new, name: str, theirs, scale: float, width: int, offset: float) -> None:
    """Make the final norm one of `width` channels, in float32, that multiplies each by `scale`."""
    place(new, f"{name}.weight", theirs.weight.data.float()[:1])
    if getattr(theirs, "bias", None) is not None:
        place(new, f"{name}.bias", theirs.bias.data.float()[:1])
    set_norm(new.get_submodule(name), scale, width, offset)


def _move_bias(new, name: str, norm, theirs, by: torch.Tensor, rotated: bool) -> None:
    """Add to the bias of the final norm: of the new one where the stream is rotated, else of the dense one."""
    if rotated:
        norm.bias.copy_(by)
    else:
        place(new, f"{name}.bias", (theirs.bias.float() + by.to(theirs.bias.device)).to(theirs.weight.dtype))


def _prior(theirs, basis: torch.Tensor | None, width: int, offset: float, intercept: bool) -> torch.Tensor:
    """What stands between the norm's output and lm_head where nothing is fitted: [hidden_size, width (+ 1)]."""
    scale = theirs.weight.to(torch.float32 if basis is None else basis.dtype) + offset
    prior = torch.eye(width, device=scale.device) if basis is None else scale[:, None] * basis
    if not intercept:
        return prior
    shift = torch.zeros_like(scale) if theirs.bias is None else theirs.bias.float()
    return torch.cat([prior, (shift if basis is not None else 0 * shift)[:, None]], 1)


def _set_head(new, model, weight: torch.Tensor) -> None:
    """Give `new` the lm_head of `model` times `weight`."""
    head = model.get_output_embeddings()
    names = {id(module): path for path, module in model.named_modules()}
    own = head.weight.to(weight.dtype) @ weight.to(head.weight.device)
    place(new, f"{names[id(head)]}.weight", own.to(head.weight.dtype))


def _projected(moments: Moments, basis: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(slope, intercept) of each channel of Pᵀy on the same channel of x; a slope of 1 where x never changes."""
    cross = basis.T.to(moments.cross) @ moments.cross
    inputs = moments.inputs.diagonal()
    if not moments.intercept:
        return _ratio(cross.diagonal(), inputs), None
    count, sums = moments.weight, moments.inputs[-1, :-1]
    slope = _ratio(cross[:, :-1].diagonal() - cross[:, -1] * sums / count, inputs[:-1] - sums.square() / count)
    return slope, (cross[:, -1] - slope * sums) / count


def _ratio(covariance: torch.Tensor, variance: torch.Tensor) -> torch.Tensor:
    return torch.where(variance > SILENT * variance.mean(), covariance / variance, 1.0)


def _set_diagonal(norm, slope: torch.Tensor, intercept, offset: float) -> None:
    weight = slope.float() * (norm.weight + offset)
    norm.weight.copy_(weight - offset)
    if intercept is not None and norm.bias is not None:
        norm.bias.copy_(intercept.float())
