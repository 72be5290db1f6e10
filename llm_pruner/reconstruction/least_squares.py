"""Least squares from second moments: what a projection should be so that it gives what the dense model gave.

    W' = (E[y xᵀ] + λ·W) (E[x xᵀ] + λ·I)⁻¹,   λ relative to the mean of the diagonal

ridge regression that pulls towards the original weights, not towards zero. Which λ, or whether to fit at all,
is decided by tokens that were not fitted on, whose squared error also follows from second moments alone.
"""

import math
from dataclasses import dataclass

import torch

# times the mean of the diagonal of E[x xᵀ]
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# what λ is at least: inputs far below any trained model's, zeros for one, say nothing about a weight
LEAST = 1e-20
# so many times as much as usual must a token's energy grow to be a massive activation. It is about 50 at most
# elsewhere, and 20,000 at least where one arises in SmolLM2-135M.
MASSIVE = 100.0
# of a product at a time
ROWS = 4096


class Moments:
    """Second moments of inputs x [tokens, n] and targets y [tokens, out], each token weighted.

    Products are made in float32 for each batch and summed in float64 (float32 on Apple's GPUs): `inputs`, Σ w·x xᵀ [n,
    n]; `cross`, Σ w·y xᵀ [out, n]; `targets`, Σ w·y² [out]. They are empty until something is added.

    Args:
        intercept: Whether x gets a column of ones at its end.
    """

    def __init__(self, intercept: bool = False) -> None:
        self.intercept = intercept
        self.weight = 0.0
        self.inputs = self.cross = self.targets = torch.empty(0)

    def add(self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Add some tokens.

        Args:
            x: Float tensor [..., n].
            y: Float tensor [..., out].
            weights: Float tensor [...] of the tokens' weights; by default 1.
        """
        x, y = x.detach().reshape(-1, x.shape[-1]).float(), y.detach().reshape(-1, y.shape[-1]).float()
        if self.intercept:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        scaled = x
        if weights is not None:
            weights = weights.detach().reshape(-1, 1).float()
            scaled, y_scaled = x * weights, y * weights
        else:
            y_scaled = y
        if not self.inputs.numel():
            wide = x.dtype if x.device.type == "mps" else torch.float64
            self.inputs, self.cross = (x.new_zeros(own.shape[1], x.shape[1], dtype=wide) for own in (x, y))
            self.targets = y.new_zeros(y.shape[1], dtype=wide)
        _add_products(self.inputs, scaled, x)
        _add_products(self.cross, y_scaled, x)
        self.targets += (y_scaled * y).sum(0)
        self.weight += float(len(x) if weights is None else weights.sum())

    def error(self, weight: torch.Tensor) -> float:
        """Return the mean weighted squared error of y ≈ weight·x, per token.

        Args:
            weight: [out, n].
        """
        weight = weight.to(self.inputs)
        found = ((weight @ self.inputs) * weight).sum() - 2 * (weight * self.cross).sum() + self.targets.sum()
        # NaN stays NaN, and is no better than anything
        total = found.clamp_min(0.0).item()
        return total / self.weight if self.weight else math.nan

    def columns(self, index: torch.Tensor) -> "Moments":
        """Return the moments of some of the inputs; the column of ones stays.

        Args:
            index: LongTensor [k] of columns.
        """
        if self.intercept:
            index = torch.cat([index, index.new_tensor([self.inputs.shape[0] - 1])])
        index = index.to(self.inputs.device)
        part = Moments(self.intercept)
        part.inputs, part.cross = self.inputs[index][:, index], self.cross[:, index]
        part.targets, part.weight = self.targets, self.weight
        return part


@dataclass(frozen=True)
class CommonInput:
    """Moments of the one input x of several projections, and of what it is in the dense model.

    Attributes:
        both: Moments of x and, as its target, of the dense model's x.
        dense: Moments of the dense model's x; their target is of no use.
    """

    both: Moments
    dense: Moments

    def add(self, x: torch.Tensor, x_dense: torch.Tensor) -> None:
        """Add some tokens.

        Args:
            x: Float tensor [..., n].
            x_dense: Float tensor [..., m].
        """
        with_ones = x_dense.reshape(-1, x_dense.shape[-1])
        if self.both.intercept:
            with_ones = torch.cat([with_ones, with_ones.new_ones(len(with_ones), 1)], 1)
        self.both.add(x, with_ones)
        self.dense.add(x_dense, with_ones[:, :1])

    def towards(self, weight: torch.Tensor) -> Moments:
        """Return the moments of x and of weight·x_dense.

        Args:
            weight: float32 [out, m], or [out, m + 1] with the bias last.
        """
        weight = weight.to(self.both.inputs)
        result = Moments(self.both.intercept)
        result.inputs, result.weight = self.both.inputs, self.both.weight
        result.cross = weight @ self.both.cross
        result.targets = ((weight @ self.dense.inputs) * weight).sum(1)
        return result


def _add_products(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add leftᵀ·right to `sums`, some rows at a time: the products of a large model's MLP are gigabytes."""
    for start in range(0, len(sums), ROWS):
        sums[start : start + ROWS] += left[:, start : start + ROWS].T @ right


@dataclass(frozen=True)
class Fit:
    """The weights that were found for a projection.

    Attributes:
        weight: float32 [out, n], the intercept last.
        kind: nothing, intercept or least squares.
        error: Squared error per held-out token.
        before: That of the prior.
    """

    weight: torch.Tensor
    kind: str
    error: float
    before: float


def normal_equations(moments: Moments, prior: torch.Tensor, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of the ridge regression W' A = B; the intercept is not drawn to its prior.

    Args:
        moments: Of inputs and targets.
        prior: [out, n], the original weights.
        ridge: λ, relative to the mean of the diagonal of A.

    Returns:
        A [n, n] and B [out, n], float64 (float32 on Apple's GPUs).
    """
    inputs, prior = moments.inputs / moments.weight, prior.to(moments.inputs)
    pull = (ridge * inputs.diagonal().mean()).clamp_min(LEAST) * torch.ones_like(inputs.diagonal())
    if moments.intercept:
        pull[-1] = 1e-9 * pull[0]
    right = moments.cross / moments.weight + prior * pull
    inputs.diagonal().add_(pull)
    return inputs, right


def fit(moments: Moments, held: Moments, prior: torch.Tensor, dtype: torch.dtype = torch.float32) -> Fit:
    """Fit a projection: return what held-out tokens like best of the prior, an intercept alone and several fits.

    The fits are ridge regressions with the λ of RIDGES.

    Args:
        moments: Of the tokens to fit on.
        held: Of the tokens that are held out.
        prior: [out, n], the original weights, with the bias as last column where there is an intercept.
        dtype: What the weights will be kept in; a fit with larger ones does not count.
    """
    before = held.error(prior)
    best = Fit(prior.float(), "nothing", before, before)
    if moments.intercept:
        shifted = prior.to(moments.inputs).clone()
        mean = moments.inputs[:, -1] / moments.weight
        shifted[:, -1] += moments.cross[:, -1] / moments.weight - shifted @ mean
        best = _better(best, shifted, "intercept", held, dtype)
    for ridge in RIDGES:
        normal, right = normal_equations(moments, prior, ridge)
        factor, failed = torch.linalg.cholesky_ex(normal)
        if not failed:
            best = _better(best, torch.cholesky_solve(right.T, factor).T, "least squares", held, dtype)
    return best


def _better(best: Fit, weight: torch.Tensor, kind: str, held: Moments, dtype: torch.dtype) -> Fit:
    error = held.error(weight)
    better = error < best.error and weight.abs().max() <= torch.finfo(dtype).max
    return Fit(weight.float(), kind, error, best.before) if better else best


def token_weights(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return one over the energy of each token behind a layer, so that relative errors count.

    A token in which a massive activation arises counts more, by the root of how much more than usual its energy grows.
    It may be one of hundreds, and yet the model breaks without it: the others attend to it. (Massive activations, Sun
    et al. 2024, https://arxiv.org/abs/2402.17762.)

    Args:
        before: The energy that enters the layer, float tensor [prompts, tokens].
        after: The energy that leaves it, float tensor [prompts, tokens].

    Returns:
        Float tensor [prompts, tokens].
    """
    before, after = (energy.clamp_min(least_energy(energy)) for energy in (before, after))
    growth = after / before
    growth /= growth.median()
    return torch.where(growth > MASSIVE, growth.sqrt(), 1.0) / after


def least_energy(energy: torch.Tensor) -> torch.Tensor:
    """Return the energy that a token is taken to have at least.

    It is a millionth of the median, or of the mean where most tokens are silent, as they are behind an embedding of
    zeros; of 1 where all are.

    Args:
        energy: Float tensor [prompts, tokens].

    Returns:
        A scalar.
    """
    median, mean = energy.median(), energy.mean()
    typical = torch.where(median > 0, median, torch.where(mean > 0, mean, 1.0))
    return (1e-6 * typical).clamp_min(torch.finfo(energy.dtype).tiny)
