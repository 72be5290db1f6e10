"""The weight of a sparse linear layer stored by input channels, and the part of its output that costs no columns."""

import torch

from llm_pruner.config import recipe as names
from llm_pruner.sparsity.linear import SparseLinear


def by_columns(layer: SparseLinear) -> None:
    """Store the weight so that what one input channel multiplies is contiguous; it stays [out, in] to everyone."""
    if not layer.transposed and not layer.columns.is_contiguous():
        layer.weight.data = layer.weight.data.T.contiguous().T


def centre_of(layer: SparseLinear) -> torch.Tensor | None:
    """Return c [in]."""
    sparsity = layer.sparsity
    if sparsity.recipe.transform == names.SHIFT:
        return torch.ones(layer.in_features, device=layer.weight.device) if sparsity.scale is None else sparsity.scale
    if sparsity.shift is None:
        return None
    return sparsity.shift if sparsity.scale is None else sparsity.shift * sparsity.scale
