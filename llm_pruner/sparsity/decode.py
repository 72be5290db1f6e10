"""Sparse linear layers that decode faster than dense ones.

A linear layer at batch 1 costs what reading its weight costs. Of it only the columns are read whose input survives:
it is stored so that what one input channel multiplies is contiguous, and then, with the names of activations.py,

    y = v · (Σ_kept s_j u_j W_:j + t · W c) + b,

where η does not cost a column: for learnable c = s·η and t = 1, for shift (PTS) c = s and t is the token's mean, and
W c is computed once. On a GPU that is kernel.py's, on a CPU torch's embedding_bag, which adds up weighted rows.
"""

import os
from functools import cache

import torch
import torch.nn.functional as F

from llm_pruner.sparsity import recipe as names
from llm_pruner.sparsity.linear import SparseLinear, sparse_layers

BAGS = 4  # for each thread


def speed_up(model: torch.nn.Module) -> int:
    """Has the model's sparse linear layers decode one token at a time this way where they can; how many do. All else
    goes on as it was. For inference: from here on the layers' tensors are not to change."""
    layers = [layer for layer in sparse_layers(model).values() if not layer.weight.is_meta]
    made = 0
    for layer in layers:
        by_columns(layer)
        if fast := fast_for(layer):
            layer.decode = fast(layer)
            made += 1
    return made


def fast_for(layer: SparseLinear) -> type | None:
    """What computes one token where the layer is: the kernel on a GPU and, for tests, in Triton's interpreter."""
    device = layer.weight.device.type
    if has_triton() and (device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"):
        from llm_pruner.sparsity.launch import Kernel

        return Kernel
    return Bags if device == "cpu" else None


@cache
def has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


def by_columns(layer: SparseLinear) -> None:
    """Stores the weight so that what one input channel multiplies is contiguous; it stays [out, in] to everyone."""
    if not layer.transposed and not layer.columns.is_contiguous():
        layer.weight.data = layer.weight.data.T.contiguous().T


def centre_of(layer: SparseLinear) -> torch.Tensor | None:
    """c [in]."""
    sparsity = layer.sparsity
    if sparsity.recipe.transform == names.SHIFT:
        return torch.ones(layer.in_features, device=layer.weight.device) if sparsity.scale is None else sparsity.scale
    if sparsity.shift is None:
        return None
    return sparsity.shift if sparsity.scale is None else sparsity.shift * sparsity.scale


class Bags:
    """y = layer(x) for x of one token, by embedding_bag: bags of columns, which threads share out."""

    @torch.no_grad()
    def __init__(self, layer: SparseLinear) -> None:
        self.layer = layer
        centre = centre_of(layer)
        self.offset = None if centre is None else centre @ layer.columns.to(centre.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        layer, sparsity = self.layer, self.layer.sparsity
        u, centre = sparsity.centred(x.reshape(1, -1))
        kept = sparsity.kept(u)
        channels = kept[0].nonzero()[:, 0]
        values = u[0, channels]
        values = values if sparsity.scale is None else values * sparsity.scale[channels]
        columns = layer.columns
        bags = BAGS * torch.get_num_threads()
        starts = torch.arange(bags) * -(-len(channels) // bags)
        sums = F.embedding_bag(
            channels, columns, starts.clamp(max=len(channels)), mode="sum", per_sample_weights=values.to(columns.dtype)
        )
        y = sums.to(u.dtype).sum(0)
        if self.offset is not None:
            y = y + (self.offset * centre if centre.numel() == 1 else self.offset)
        factor = sparsity.factor(u, u * kept)
        y = y if factor is None else y * factor
        y = y if layer.bias is None else y + layer.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)
