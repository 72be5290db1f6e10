"""A linear layer that sees a sparse version of its input. Weight and bias are the dense layer's, by the same names."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_pruner.config.recipe import Recipe
from llm_pruner.sparsity.activations import SparseInput


class SparseLinear(nn.Module):
    """y = W x̂ + b, x̂ = sparsity(x), in place of an nn.Linear, or of a Conv1D, whose weight is stored as [in, out].

    `decode`, where speed_up of decode.py has set it, does it for one token, without gradients; `attach` sets it anew.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    in_features: int
    out_features: int
    decode: Callable[[torch.Tensor], torch.Tensor] | None
    attach: "Callable[[SparseLinear], bool] | None"

    def __init__(self, dense: Any, recipe: Recipe) -> None:
        super().__init__()
        self.transposed = isinstance(dense, Conv1D)
        self.weight, self.bias = dense.weight, dense.bias
        sides = dense.weight.shape if self.transposed else dense.weight.shape[::-1]
        self.in_features, self.out_features = sides
        self.sparsity = SparseInput(recipe, self.in_features, dense.weight.device)
        self.decode = self.attach = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return W x̂ + b."""
        if self.decode is not None and x.numel() == self.in_features and not torch.is_grad_enabled():
            return self.decode(x)
        return self.dense(self.sparsity(x))

    def dense(self, x: torch.Tensor) -> torch.Tensor:
        """Return W x + b."""
        return F.linear(x, self.columns.T, self.bias)

    def _apply(self, function, recurse=True):
        """Moved to another device or dtype, it decodes as it can there."""
        super()._apply(function, recurse)
        if self.decode is not None and self.attach is not None:
            self.attach(self)
        return self

    @property
    def columns(self) -> torch.Tensor:
        """[in, out]: the weight, a row for each input channel."""
        return self.weight if self.transposed else self.weight.T

    def extra_repr(self) -> str:
        """Return what `repr` says of the layer."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.sparsity.recipe.label}"


def make_sparse(model: nn.Module, names: Iterable[str], recipe: Recipe) -> dict[str, SparseLinear]:
    """Put a SparseLinear in the place of linear layers, and return {name: it}.

    Args:
        model: The model.
        names: The names of nn.Linear or Conv1D modules.
        recipe: What is made sparse.
    """
    made = {}
    for name in names:
        parent, _, own = name.rpartition(".")
        dense = model.get_submodule(name)
        made[name] = SparseLinear(dense, recipe).train(dense.training)
        setattr(model.get_submodule(parent), own, made[name])
    return made


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    """Return {name: layer} of those whose input is sparse."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
