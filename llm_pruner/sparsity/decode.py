"""Sparse linear layers that decode faster than dense ones.

A linear layer at batch 1 costs what reading its weight costs. Of it only the columns are read whose input survives:
it is stored so that what one input channel multiplies is contiguous, and then, with the names of activations.py,

    y = v · (Σ_kept s_j u_j W_:j + t · W c) + b,

where η does not cost a column: for learnable c = s·η and t = 1, for shift (PTS) c = s and t is the token's mean, and
W c is computed once. On a GPU that is kernel.py's, on a CPU torch's embedding_bag, which adds up weighted rows.
"""

import logging
import os
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F

from llm_pruner.config import recipe as names
from llm_pruner.config.recipe import Recipe
from llm_pruner.sparsity.columns import by_columns, centre_of
from llm_pruner.sparsity.linear import SparseLinear, sparse_layers

logger = logging.getLogger(__name__)

# for each thread
BAGS = 4


def speed_up(model: torch.nn.Module) -> int:
    """Make the model's sparse linear layers decode faster, one token at a time, where the device can.

    All else runs as before. This is for inference: the layers' tensors must not change any more.

    Args:
        model: A model whose linear layers have sparse inputs.

    Returns:
        How many layers decode faster.
    """
    return sum(attach(layer) for layer in sparse_layers(model).values())


def attach(layer: SparseLinear) -> bool:
    """Set the layer's `decode` to what computes one token on its device, or to None; return whether there is one."""
    layer.decode, layer.attach = None, attach
    if layer.weight.is_meta:
        return False
    by_columns(layer)
    if fast := fast_for(layer.weight.device):
        layer.decode = fast(layer)
    return layer.decode is not None


def fast_for(device: torch.device) -> type | None:
    """Return the kernel on a GPU and, for tests, in Triton's interpreter; embedding_bag on a CPU."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if (device.type == "cuda" or interpreted) and kernel_runs(device):
        from llm_pruner.sparsity.launch import Kernel

        return Kernel
    return Bags if device.type == "cpu" else None


@cache
def kernel_runs(device: torch.device) -> bool:
    """Return whether Triton is there and can compile for the device, tried out on a small layer."""
    if not find_spec("triton"):
        return False
    try:
        from llm_pruner.sparsity.launch import Kernel, Tile

        # draws no random numbers, and is not what was left in memory, whose sums may overflow
        dense = torch.nn.utils.skip_init(torch.nn.Linear, 32, 32, device=device)
        for parameter in dense.parameters():
            parameter.data.fill_(1.0)
        layer = SparseLinear(dense, Recipe(n=2, m=4))
        by_columns(layer)
        Kernel(layer, Tile())(torch.ones(32, device=device))
    except Exception as error:
        # whatever a compiler or a driver says
        logger.warning("Triton cannot run on %s, so sparse layers decode in plain torch: %s", device, _line(error))
        return False
    return True


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]


class Bags:
    """y = layer(x) for x of one token, by embedding_bag: bags of columns, which threads share out."""

    @torch.no_grad()
    def __init__(self, layer: SparseLinear) -> None:
        self.layer = layer
        centre = centre_of(layer)
        self.offset = None if centre is None else centre @ layer.columns.to(centre.dtype)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for `x` of one token."""
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
            level = centre if sparsity.recipe.transform == names.SHIFT else None
            y = y + (self.offset if level is None else self.offset * level)
        factor = sparsity.factor(u, u * kept)
        y = y if factor is None else y * factor
        y = y if layer.bias is None else y + layer.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], -1)
