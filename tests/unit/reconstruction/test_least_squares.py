"""Least squares from moments, against a direct computation on the tokens in float64."""

import pytest
import torch

from llm_pruner.reconstruction.least_squares import RIDGES, Moments, fit, normal_equations

IN, OUT = 12, 5


def moments(x, y, weights=None, intercept=False) -> Moments:
    """Of the tokens in three batches, the first of them with a further axis."""
    found = Moments(intercept)
    for part in (slice(0, 20), slice(20, 21), slice(21, None)):
        own = None if weights is None else weights[part]
        found.add(x[part], y[part], own)
    return found


def with_ones(x) -> torch.Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], -1)


def squared_error(weight, x, y, weights=None) -> float:
    """Mean weighted squared error per token; x has a column of ones where the weight has an intercept."""
    x, y, weight = x.double(), y.double(), weight.double()
    weights = torch.ones(len(x), dtype=torch.double) if weights is None else weights.double()
    each = (y - (with_ones(x) if weight.shape[1] > x.shape[1] else x) @ weight.T).square().sum(1)
    return ((each * weights).sum() / weights.sum()).item()


def ridge_regression(x, y, prior, ridge) -> torch.Tensor:
    """argmin Σ‖y − W·x‖²/N + λ·mean(E[x²])·‖W − prior‖², as a least squares problem over the tokens: float64."""
    x, y, prior = x.double(), y.double(), prior.double()
    free = prior.shape[1] > x.shape[1]
    x = with_ones(x) if free else x
    pull = torch.full((x.shape[1],), ridge, dtype=torch.double) * x.square().mean(0).mean()
    if free:
        pull[-1] = 0
    rows = torch.cat([x / len(x) ** 0.5, pull.sqrt().diag()])
    return torch.linalg.lstsq(rows, torch.cat([y / len(x) ** 0.5, pull.sqrt()[:, None] * prior.T])).solution.T


def data(tokens: int, seed: int, noise: float = 0.0, shift: float = 0.0, other: float = 0.0, mixing: float = 0.0):
    """(x, y, prior) with y = (prior + other)·x + shift + noise, the same prior for every seed; it has an intercept."""
    fixed, own = torch.Generator().manual_seed(7), torch.Generator().manual_seed(seed)
    prior, change = (torch.randn(OUT, IN + 1, generator=fixed) for _ in range(2))
    mixed = torch.eye(IN) + mixing * torch.randn(IN, IN, generator=fixed)
    x = torch.randn(tokens, IN, generator=own) @ mixed + 0.5
    y = with_ones(x) @ (prior + other * change).T + shift + noise * torch.randn(tokens, OUT, generator=own)
    return x, y, prior


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_error_is_the_mean_over_the_tokens(intercept, weighted):
    x, y, prior = data(64, 0, noise=1.0, shift=2.0)
    weights = torch.rand(64) + 0.1 if weighted else None
    weight = prior if intercept else prior[:, :-1]
    found = moments(x, y, weights, intercept)
    assert found.error(weight) == pytest.approx(squared_error(weight, x, y, weights), rel=1e-5)
    assert found.weight == pytest.approx(64 if weights is None else weights.sum().item())


def test_further_axes_are_tokens():
    x, y, _ = data(24, 0, noise=1.0)
    flat, shaped = Moments(True), Moments(True)
    flat.add(x, y, torch.arange(24.0))
    shaped.add(x.view(2, 3, 4, IN), y.view(2, 3, 4, OUT), torch.arange(24.0).view(2, 3, 4))
    assert torch.equal(flat.inputs, shaped.inputs)
    assert torch.equal(flat.cross, shaped.cross)


def test_a_token_of_weight_two_counts_twice():
    x, y, prior = data(24, 0, noise=1.0)
    weights = torch.arange(24) % 3
    once, twice = (
        normal_equations(moments(*tokens, intercept=True), prior, 0.1)
        for tokens in ((x, y, weights.float()), (x.repeat_interleave(weights, 0), y.repeat_interleave(weights, 0)))
    )
    for own, expected in zip(once, twice, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("intercept", [False, True])
def test_moments_of_some_columns(intercept):
    x, y, prior = data(64, 0, noise=1.0)
    index = torch.tensor([7, 2, 3])
    part, direct = moments(x, y, None, intercept).columns(index), moments(x[:, index], y, None, intercept)
    torch.testing.assert_close(part.inputs, direct.inputs)
    torch.testing.assert_close(part.cross, direct.cross, rtol=1e-5, atol=1e-4)
    weight = prior[:, : 3 + intercept]
    assert part.error(weight) == pytest.approx(direct.error(weight), rel=1e-6)


@pytest.mark.parametrize("intercept", [False, True])
@pytest.mark.parametrize("ridge", RIDGES)
def test_normal_equations_are_ridge_regression_towards_the_prior(intercept, ridge):
    x, y, prior = data(40, 0, noise=1.0, shift=3.0, other=0.3, mixing=0.5)
    prior = prior if intercept else prior[:, :-1]
    normal, right = normal_equations(moments(x, y, None, intercept), prior, ridge)
    expected = ridge_regression(x, y, prior, ridge)
    torch.testing.assert_close(torch.linalg.solve(normal, right.T).T, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("intercept", [False, True])
def test_fit_is_the_ridge_that_the_held_out_tokens_like_best(intercept):
    """Correlated inputs and some noise: neither the weakest pull nor the strongest is best."""
    x, y, prior = data(24, 1, noise=1.0, other=0.3, mixing=0.5)
    held_x, held_y, _ = data(2000, 2, noise=1.0, other=0.3, mixing=0.5)
    prior = prior if intercept else prior[:, :-1]
    found = fit(moments(x, y, None, intercept), moments(held_x, held_y, None, intercept), prior)
    errors = {ridge: squared_error(ridge_regression(x, y, prior, ridge), held_x, held_y) for ridge in RIDGES}
    best = min(errors, key=errors.get)
    assert best not in (RIDGES[0], RIDGES[-1])
    torch.testing.assert_close(found.weight.double(), ridge_regression(x, y, prior, best), rtol=1e-4, atol=1e-4)
    assert (found.kind, found.error) == ("least squares", pytest.approx(errors[best], rel=1e-4))
    assert found.before == pytest.approx(squared_error(prior, held_x, held_y), rel=1e-4)
    assert found.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("noise", "shift", "other", "kind"),
    [
        (3.0, 0.0, 0.0, "nothing"),
        (3.0, 4.0, 0.0, "intercept"),
        (0.5, 0.0, 1.0, "least squares"),
        (0.5, 4.0, 1.0, "least squares"),
    ],
)
def test_the_held_out_tokens_decide(noise, shift, other, kind):
    """From few tokens noise is learnt too, and only what is worth that is done."""
    x, y, prior = data(30, 1, noise, shift, other)
    held_x, held_y, _ = data(2000, 2, noise, shift, other)
    found = fit(moments(x, y, intercept=True), moments(held_x, held_y, intercept=True), prior)
    assert found.kind == kind
    if kind == "nothing":
        assert torch.equal(found.weight, prior)
        assert found.error == found.before
    else:
        assert found.error < 0.8 * found.before
    if kind == "intercept":
        assert torch.equal(found.weight[:, :-1], prior[:, :-1])
        mean = (y.double() - with_ones(x).double() @ prior.double().T).mean(0)
        torch.testing.assert_close((found.weight - prior)[:, -1].double(), mean, rtol=1e-4, atol=1e-4)


def test_without_an_intercept_none_is_tried():
    x, y, prior = data(30, 1, noise=3.0)
    held_x, held_y, _ = data(2000, 2, noise=3.0)
    prior = prior[:, :-1]
    y, held_y = y - y.mean(0), held_y - held_y.mean(0)
    found = fit(moments(x, y), moments(held_x, held_y), prior)
    assert found.weight.shape == prior.shape
    assert found.kind in ("nothing", "least squares")


@pytest.mark.parametrize("intercept", [False, True])
def test_fewer_directions_than_inputs(intercept):
    """Three tokens, equal columns, a column of zeros: what is not seen stays as it was."""
    x, y, prior = data(64, 1, other=1.0)
    x = x.clone()
    x[:, 1], x[:, 2] = x[:, 0], 0.0
    few, prior = x[:3], prior if intercept else prior[:, :-1]
    found = fit(moments(few, y[:3], None, intercept), moments(few, y[:3], None, intercept), prior)
    assert found.kind == "least squares"
    assert found.error < 1e-3 * found.before
    torch.testing.assert_close(found.weight[:, 2], prior[:, 2])
    change = found.weight - prior
    torch.testing.assert_close(change[:, 0], change[:, 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_taken(bad):
    x, y, prior = data(64, 1, other=1.0)
    held = moments(x, y, intercept=True)
    broken = moments(x, torch.where(torch.arange(64)[:, None] == 3, bad, y), intercept=True)
    found = fit(broken, held, prior)
    assert found.kind == "nothing"
    assert torch.equal(found.weight, prior)
