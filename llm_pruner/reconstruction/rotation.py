"""A smaller residual stream: one rotation for the whole model, then the directions with the least energy go.

With P [hidden_size, new hidden_size] the leading eigenvectors of the stream's covariance, summed over all layers with
every token scaled to one length, the new stream is Pᵀh. A linear that writes to the stream becomes PᵀW, one that
reads it through a norm of weight w becomes W·diag(w)·P, and the norm's own weight √(ρ·d/d′), where ρ is the share of
the energy that stays. (SliceGPT, Ashkboos et al. 2024, https://arxiv.org/abs/2401.15024, rotates every block on its
own and needs its own modelling code; with one rotation the result is a stock checkpoint.)

A LayerNorm takes the mean away first. It does not change what is read when the stream is centred, so for it P's rows
span centred streams of the new width, whose mean is zero by construction.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import nn

from llm_pruner.calibration.layerwise import Layer, walk
from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HIDDEN
from llm_pruner.model.groups import Group, group_of
from llm_pruner.model.layers import inside, layer_number
from llm_pruner.reconstruction.layers import matrix, parts_of, set_matrix, watch


@torch.no_grad()
def basis_of(model, batches: Sequence[torch.Tensor], hidden_size: int, centred: bool) -> torch.Tensor:
    """Return the directions of the residual stream with the most energy.

    Args:
        model: In evaluation mode.
        batches: LongTensors [prompts, length].
        hidden_size: How many directions.
        centred: Whether the norms are LayerNorms, which take the mean away first.

    Returns:
        P, float32 [hidden_size of the model, hidden_size], on the CPU.

    Raises:
        RunError: Hidden states are not finite.
    """
    covariance = torch.zeros((model.config.hidden_size,) * 2, dtype=torch.float64)
    for layer in walk(model, batches, "rotation", offload=True):
        layer.run()
        behind_all = layer.outputs if layer.index == model.config.num_hidden_layers - 1 else []
        sums = torch.zeros(())
        for hidden in (*layer.stream, *behind_all):
            rows = hidden.to(layer.device).reshape(-1, hidden.shape[-1]).float()
            if centred:
                rows = rows - rows.mean(1, keepdim=True)
            rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
            product = rows.T @ rows
            sums = sums + (product if product.device.type == "mps" else product.double())
        # layers may be on several devices
        covariance += sums.cpu()
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)
    if not centred:
        return vectors[:, :hidden_size].float()
    ones = torch.ones(hidden_size, 1, dtype=torch.float64)
    across = torch.linalg.qr(torch.cat([ones, torch.eye(hidden_size, dtype=torch.float64)[:, 1:]], 1)).Q[:, 1:]
    return (vectors[:, : hidden_size - 1] @ across.T).float()


def norm_scale(hidden: Iterable[torch.Tensor], basis: torch.Tensor, centred: bool) -> float:
    """Return √(ρ·d/d′) for a norm, with ρ the mean over tokens of ‖Pᵀh‖² / ‖h‖².

    Args:
        hidden: The inputs h of the norm, [prompts, tokens, d] each.
        basis: P [d, d′].
        centred: Whether it is a LayerNorm.
    """
    shares = []
    for tensor in hidden:
        rows = tensor.to(basis.device).reshape(-1, tensor.shape[-1]).float()
        if centred:
            rows = rows - rows.mean(1, keepdim=True)
        energy, left = rows.square().sum(1), (rows @ basis).square().sum(1)
        # silent tokens lose nothing
        shares.append(torch.where(energy > 0, left / energy, 1.0).mean())
    return (torch.stack(shares).mean() * basis.shape[0] / basis.shape[1]).sqrt().item()


def set_norm(norm, scale: float, width: int, offset: float) -> None:
    """Make a norm one of `width` channels that multiplies each by `scale`.

    Args:
        norm: The norm.
        scale: What it multiplies by.
        width: The number of channels.
        offset: It multiplies by (offset + weight).
    """
    norm.weight = nn.Parameter(norm.weight.new_full((width,), scale - offset))
    if getattr(norm, "bias", None) is not None:
        norm.bias = nn.Parameter(norm.bias.new_zeros(width))
    if hasattr(norm, "normalized_shape"):
        norm.normalized_shape = (width,)


def norm_bias(weight: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return the least b with weight·b ≈ shift: the bias of a norm for linear layers behind it that have none.

    A centred basis gives `weight` a direction that is zero but for rounding, along which b must not grow.

    Args:
        weight: [out, hidden_size].
        shift: [out].

    Returns:
        float32 [hidden_size], on the CPU.
    """
    weight, shift = weight.double().cpu(), shift.double().cpu()[:, None]
    return torch.linalg.lstsq(weight, shift, rcond=1e-4, driver="gelsd").solution[:, 0].float()


@torch.no_grad()
def rotate_layer(wide, dense: Layer, groups: Sequence[Group], basis: torch.Tensor, offset: float) -> None:
    """Make a copy of a dense layer run on Pᵀh.

    Args:
        wide: The copy, in float32.
        dense: The layer, which has been run.
        groups: The model's groups.
        basis: P [hidden_size, new hidden_size].
        offset: Norms multiply by (offset + weight).

    Raises:
        PlanError: A norm stands between a projection and the stream; no rotation goes through it.
    """
    basis = basis.to(next(wide.parameters()).device)
    unfolded = rotate_projections(wide, dense, groups, basis, offset)
    modules = dict(dense.module.named_modules())
    for name in norms_of(groups, dense.index):
        seen = (watch(partial(dense.call, b, x), [modules[name]])[0][0] for b, x in enumerate(dense.stream))
        scale = norm_scale(seen, basis, is_layer_norm(modules[name]))
        set_norm(wide.get_submodule(name), scale, basis.shape[1], offset)
        # as far as a bias of the norm can say it
        if name in unfolded:
            own, shift = (torch.cat(tensors) for tensors in zip(*unfolded[name], strict=True))
            wide.get_submodule(name).bias.copy_(norm_bias(own, shift))


@torch.no_grad()
def rotate_projections(
    wide, dense: Layer, groups: Sequence[Group], basis: torch.Tensor, offset: float
) -> dict[str, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Make the projections of a copy of a dense layer read and write Pᵀh, the weights of its norms folded in.

    Args:
        wide: The copy, in the dtype and on the device of `basis`. Its norms stay as they are.
        dense: The layer, which has been run.
        groups: The model's groups.
        basis: P [hidden_size, new hidden_size].
        offset: Norms multiply by (offset + weight).

    Returns:
        {norm: [(weight [out, new hidden_size], shift [out])]} of the projections behind a norm with a bias that have no
        bias themselves to take it: by `shift` they would be higher.

    Raises:
        PlanError: A norm stands between a projection and the stream; no rotation goes through it.
    """
    unfolded: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for projection, name in norms_before(dense, groups).items():
        module, norm = wide.get_submodule(projection), wide.get_submodule(name)
        if getattr(norm, "bias", None) is not None:
            shift = matrix(module) @ norm.bias
            if module.bias is None:
                unfolded.setdefault(name, []).append((matrix(module) * (norm.weight + offset) @ basis, shift))
            else:
                module.bias += shift
        set_matrix(module, matrix(module) * (norm.weight + offset) @ basis)
    for part in parts_of(groups, dense.index):
        output = wide.get_submodule(part.output_projection)
        set_matrix(output, basis.T @ matrix(output))
        if output.bias is not None:
            output.bias = nn.Parameter(basis.T @ output.bias)
    return unfolded


def norms_before(dense: Layer, groups: Sequence[Group]) -> dict[str, str]:
    """Return {input projection of a layer: the norm whose output it reads}, by their names in the layer.

    Args:
        dense: The layer, which has been run.
        groups: The model's groups.

    Raises:
        PlanError: A norm stands between a projection and the stream; no rotation goes through it.
    """
    projections = [name for part in parts_of(groups, dense.index) for name in part.input_projections]
    norms = norms_of(groups, dense.index)
    modules = dict(dense.module.named_modules())
    given, found, _ = watch(
        partial(dense.call, 0, dense.stream[0]), [modules[name] for name in projections],
        [modules[name] for name in norms], whole=True,
    )  # fmt: skip
    feeding = {}
    for projection, tensor in zip(projections, given, strict=True):
        equal = [(norm, out) for norm, out in zip(norms, found, strict=True) if torch.equal(out, tensor)]
        # norms of zeros give the same
        itself = [norm for norm, out in equal if out.data_ptr() == tensor.data_ptr()]
        feeding[projection] = itself or [norm for norm, _ in equal]
    fed = {norm for own in feeding.values() for norm in own[:1]}
    if fed != set(norms) or not all(feeding.values()):
        odd = next((norm for norm in norms if norm not in fed), norms[0])
        raise PlanError(
            f"{odd} of layer {dense.index} normalises what goes into the residual stream, and no rotation goes through "
            "that; leave hidden out of `prune`, or use `importance=magnitude`"
        )
    return {projection: own[0] for projection, own in feeding.items()}


def norms_of(groups: Sequence[Group], layer: int) -> list[str]:
    """Return the norms over the hidden channels in a layer, by their names there.

    Args:
        groups: The model's groups.
        layer: The number of the layer.
    """
    hidden = group_of(groups, HIDDEN)
    own = [m for m in hidden.members if m.role in ("rmsnorm", "layernorm") and layer_number(m.parameter) == layer]
    return [inside(member.parameter).removesuffix(".weight") for member in own]


def is_layer_norm(module: nn.Module) -> bool:
    """Return whether the norm takes the mean away."""
    return isinstance(module, nn.LayerNorm)
