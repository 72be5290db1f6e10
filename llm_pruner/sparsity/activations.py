"""What a linear layer sees of its input x [..., tokens, in] when that is sparse.

    u = x / s − η,   z = u where kept, else 0,   x̂ = s · v · (z + η)

Methods and names are those of "Motivating Next-Gen Accelerators with Flexible N:M Activation Sparsity via Benchmarking
Lightweight Post-Training Sparsification Approaches", https://arxiv.org/abs/2509.22166. scaling: s_j = √(max|x_j| /
max|W_:j|), else 1; the weight's columns times s, as published, is the same. shift (PTS): η is each token's mean over
its channels. learnable: η [in] and v, trained. variance (VAR): v = √(Var(x/s) / Var(z)). Otherwise η = 0 and v = 1.
Computed in float32 at least.

Without `causal`, statistics that a method measures as it runs (the variances, L's ‖x_:j‖) are taken over the tokens of
a sequence that are computed together, as published: a token's result then depends on those behind it, and decoding with
a cache differs from computing the text at once. With it, the variances are each token's own, and ‖x_:j‖ is the
calibration text's.
"""

import torch
from torch import nn

from llm_pruner.config import recipe as names
from llm_pruner.config.recipe import Recipe
from llm_pruner.sparsity.patterns import kept_n_of_m, kept_share


class SparseInput(nn.Module):
    """x ↦ x̂. Of its float32 tensors there are those that the recipe needs; the others are None.

    Attributes:
        scale: s [in].
        shift: η [in], of `learnable`.
        gain: v, of `learnable`.
        threshold: Of the scores.
        column_norm: What the criterion multiplies |u_j| by, [in]: s_j‖W_:j‖₂ of wanda, ‖u_:j‖₂ of a causal l.
        order: int64 [in], of `permutation`: the channels, each between its neighbours.
    """

    scale: torch.Tensor | None
    column_norm: torch.Tensor | None
    threshold: torch.Tensor | None
    shift: torch.Tensor | None
    gain: torch.Tensor | None
    order: torch.Tensor | None

    def __init__(self, recipe: Recipe, width: int, device=None) -> None:
        super().__init__()
        self.recipe = recipe
        shapes = {
            "scale": (width,) if recipe.scaling else None,
            "column_norm": (width,) if recipe.criterion == names.WANDA or recipe.calibrated_l else None,
            "threshold": () if recipe.select == names.THRESHOLD else None,
            "shift": (width,) if recipe.transform == names.LEARNABLE else None,
            "gain": () if recipe.transform == names.LEARNABLE else None,
        }
        for name, shape in shapes.items():
            fill = torch.zeros if name in ("threshold", "shift") else torch.ones
            tensor = None if shape is None else fill(shape, dtype=torch.float32, device=device)
            self.register_buffer(name, tensor)
        self.register_buffer("order", torch.arange(width, device=device) if recipe.permutation else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x̂ for x [..., tokens, in]."""
        u, centre = self.centred(x)
        z = u * self.kept(u)
        factor = self.factor(u, z)
        z = z if centre is None else z + centre
        z = z if factor is None else z * factor
        return (z if self.scale is None else z * self.scale).to(x.dtype)

    def centred(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (u, η or None where it is 0), in float32 at least."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if self.scale is not None:
            x = x / self.scale
        centre = x.mean(-1, keepdim=True) if self.recipe.transform == names.SHIFT else self.shift
        return (x if centre is None else x - centre), centre

    def scores(self, u: torch.Tensor) -> torch.Tensor:
        """Return the scores of channels, like u: the higher, the sooner a channel is kept."""
        scores = u.detach().abs()
        if self.recipe.criterion == names.L_CRITERION:
            lengths = scores.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)
            columns = scores.norm(dim=-2, keepdim=True) if self.column_norm is None else self.column_norm
            return scores * columns / lengths
        return scores if self.column_norm is None else scores * self.column_norm

    def kept(self, u: torch.Tensor) -> torch.Tensor:
        """Return which channels are kept: a BoolTensor like u."""
        recipe, scores = self.recipe, self.scores(u)
        if recipe.n_of_m and self.order is not None:
            kept = kept_n_of_m(scores[..., self.order], *recipe.n_of_m)
            return torch.empty_like(kept).index_copy_(-1, self.order, kept)
        if recipe.n_of_m:
            return kept_n_of_m(scores, *recipe.n_of_m)
        if self.threshold is not None:
            return ~(scores <= self.threshold)
        return kept_share(scores, recipe.share)

    def factor(self, u: torch.Tensor, z: torch.Tensor) -> torch.Tensor | None:
        """Return v, or None where it is 1."""
        if self.recipe.transform != names.VARIANCE:
            return self.gain
        axes = (-1,) if self.recipe.causal or u.dim() < 2 else (-2, -1)
        sparse = z.var(axes, keepdim=True)
        return torch.where(sparse > 0, u.var(axes, keepdim=True) / sparse, 1.0).sqrt()
