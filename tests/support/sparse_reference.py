"""The formulas of sparse activations in float64, token by token and channel by channel, apart from the product."""

import math

import numpy as np


def norm_rows(w: np.ndarray) -> np.ndarray:
    return np.sqrt((w**2).sum(0))


def scale_of(text: np.ndarray, w: np.ndarray) -> np.ndarray:
    """s_j = √(max|x_j| / max|W_:j|); text [tokens, in], w [out, in]."""
    return np.array([math.sqrt(abs(text[:, j]).max() / abs(w[:, j]).max()) for j in range(w.shape[1])])


def keep(scores: np.ndarray, recipe, threshold: float | None) -> np.ndarray:
    """Bool [tokens, in]."""
    kept = np.zeros(scores.shape, dtype=bool)
    for t, row in enumerate(scores):
        if recipe.m:
            for start in range(0, len(row), recipe.m):
                group = row[start : start + recipe.m]
                count = math.ceil(recipe.n * len(group) / recipe.m)
                kept[t, start + np.argsort(-group, kind="stable")[:count]] = True
        elif threshold is not None:
            kept[t] = row > threshold
        else:
            kept[t, np.argsort(-row, kind="stable")[: math.floor(len(row) * (1 - recipe.ratio) + 1e-6)]] = True
    return kept


def shifted(x: np.ndarray, recipe, s: np.ndarray, eta: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(x / s − η, η)"""
    c = x / s
    if recipe.transform == "shift":
        eta = c.mean(1, keepdims=True)
    elif recipe.transform != "learnable":
        eta = np.zeros(1)
    return c - eta, eta


def scores_of(u: np.ndarray, recipe, s: np.ndarray, w: np.ndarray, text_u: np.ndarray) -> np.ndarray:
    if recipe.criterion == "wanda":
        return abs(u) * norm_rows(w * s)
    if recipe.criterion == "l":
        columns = norm_rows(text_u if recipe.causal else u)
        return abs(u) * columns / np.sqrt((u**2).sum(1, keepdims=True))
    return abs(u)


def output(x, recipe, w, b, text, eta=None, v=1.0) -> np.ndarray:
    """y [tokens, out] of one sequence x [tokens, in]; text [tokens, in]: what was calibrated on."""
    s = scale_of(text, w) if recipe.scaling else np.ones(w.shape[1])
    u, centre = shifted(x, recipe, s, eta)
    text_u = shifted(text, recipe, s, np.zeros(1))[0]  # learnable: calibrated before η is trained
    threshold = None
    if recipe.select == "threshold":
        levels = np.sort(scores_of(text_u, recipe, s, w, text_u).ravel())
        threshold = levels[int(levels.size * recipe.ratio + 1e-6) - 1]
    kept = keep(scores_of(u, recipe, s, w, text_u), recipe, threshold)
    z = np.where(kept, u, 0.0)
    if recipe.transform == "variance":
        axis = 1 if recipe.causal else None
        v = np.sqrt(u.var(axis=axis, ddof=1, keepdims=True) / z.var(axis=axis, ddof=1, keepdims=True))
    return (v * (z + centre)) @ (w * s).T + b
