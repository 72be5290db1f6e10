"""The kernel's launches: what it is given, and in tiles of which size it works."""

import os
from dataclasses import dataclass

import torch

from llm_pruner.config import recipe as names
from llm_pruner.sparsity import kernel
from llm_pruner.sparsity.columns import centre_of
from llm_pruner.sparsity.linear import SparseLinear

# m of n:m that the kernel selects by itself
GROUPS = (2, 4, 8, 16)
# outputs that a program of the second kernel adds up
SUMMED = 256


@dataclass(frozen=True)
class Tile:
    """outputs, inputs: of a program's step. parts: shares of the channels, each a program's. warps: of a program."""

    outputs: int = 128
    inputs: int = 32
    parts: int = 16
    warps: int = 4


TILES = tuple(
    Tile(outputs, inputs, parts, warps)
    for outputs, inputs, warps in ((64, 32, 2), (128, 16, 2), (128, 32, 4), (256, 16, 4), (256, 32, 8), (512, 16, 8))
    for parts in (4, 8, 16, 32)
)


class Kernel:
    """y = layer(x) for x of one token, by kernel.py."""

    @torch.no_grad()
    def __init__(self, layer: SparseLinear, tile: Tile | None = None) -> None:
        self.layer, self.tile = layer, tile
        self.select = selected_by_kernel(layer)
        sparsity, columns = layer.sparsity, layer.columns
        if not columns.is_contiguous():
            raise ValueError("the kernel reads a weight that is stored by columns; see by_columns")
        self.centre = centre_of(layer)
        self.offset = None if self.centre is None else self.centre @ columns.float()
        self.levelled = sparsity.recipe.transform == names.SHIFT
        self.norm: torch.Tensor | None = sparsity.column_norm
        if sparsity.scale is not None:
            self.norm = (1.0 if self.norm is None else self.norm) / sparsity.scale

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output for x of one token."""
        layer, sparsity, recipe = self.layer, self.layer.sparsity, self.layer.sparsity.recipe
        if self.tile is None:
            self.tile = tile_for(self, x)
        tile = self.tile or Tile()
        inputs, outputs = layer.in_features, layer.out_features
        share = -(-inputs // (tile.parts * tile.inputs)) * tile.inputs
        parts = -(-inputs // share)
        flat, selects = x.reshape(-1), self.select != kernel.ALL
        level: torch.Tensor | None = None
        factor = sparsity.gain
        if self.levelled or not selects:
            u, centre = sparsity.centred(flat[None])
            level = centre if self.levelled else None
        if not selects:
            z = u * sparsity.kept(u)
            factor = sparsity.factor(u, z)
            flat = (z if sparsity.scale is None else z * sparsity.scale).reshape(-1)
        sums = torch.empty(parts, outputs, dtype=torch.float32, device=x.device)
        # the interpreter cuts bfloat16 off where a GPU rounds
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        y = torch.empty(outputs, dtype=torch.float32 if interpreted else x.dtype, device=x.device)
        with torch.cuda.device_of(x):
            kernel.partial_sums[(-(-outputs // tile.outputs), parts)](
                flat, self.centre if selects else None, level, self.norm if selects else None, sparsity.threshold,
                sparsity.order, layer.columns, sums, inputs, outputs, share, SELECT=self.select, N=recipe.n or 1,
                M=recipe.m or 1, OUTPUTS=tile.outputs, INPUTS=tile.inputs, num_warps=tile.warps,
            )  # fmt: skip
            kernel.added_up[(-(-outputs // SUMMED),)](
                sums, self.offset, level, factor, layer.bias, y, parts, outputs, OUTPUTS=SUMMED
            )
        return y.to(x.dtype).view(*x.shape[:-1], outputs)


def selected_by_kernel(layer: SparseLinear) -> int:
    """Return how the kernel selects.

    It is ALL, for a kernel that is given what torch has selected, where that is a share of the token or there is a
    short last group, and where more than the token's own scores is wanted: variances, or l's norms of the token or the
    sequence.
    """
    recipe = layer.sparsity.recipe
    own_norm = recipe.criterion == names.L_CRITERION and not (recipe.calibrated_l and recipe.m)
    if recipe.transform == names.VARIANCE or own_norm:
        return kernel.ALL
    if recipe.m in GROUPS and layer.in_features % recipe.m == 0:
        return kernel.N_OF_M
    return kernel.THRESHOLD if recipe.select == names.THRESHOLD else kernel.ALL


_tiles: dict[tuple, Tile] = {}


def tile_for(own: Kernel, x: torch.Tensor) -> Tile | None:
    """Return the tile that is fastest for a layer and its input, tried out once for all alike.

    It is None while a graph is captured, so run the layer before, and in the interpreter, where times mean nothing.
    """
    layer, recipe = own.layer, own.layer.sparsity.recipe
    weight = layer.weight
    key = (layer.in_features, layer.out_features, weight.dtype, weight.device, own.select, recipe.pattern)
    if key not in _tiles:
        if not weight.is_cuda or torch.cuda.is_current_stream_capturing():
            return None
        from triton.testing import do_bench

        with torch.cuda.device_of(weight):
            kernels = [Kernel(layer, tile) for tile in TILES]
            seconds = [do_bench(lambda k=k: k(x), warmup=5, rep=20) for k in kernels]
        _tiles[key] = TILES[seconds.index(min(seconds))]
    return _tiles[key]
