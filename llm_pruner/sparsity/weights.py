"""Sparse weights: entries of the targeted matrices set to zero, once. The result is an ordinary model."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_pruner.calibration.layerwise import not_finite, walk
from llm_pruner.config import recipe as names
from llm_pruner.config.recipe import Recipe
from llm_pruner.errors import computing
from llm_pruner.sparsity.calibration import check, layers_of, watched
from llm_pruner.sparsity.patterns import kept_n_of_m, kept_share
from llm_pruner.sparsity.targets import targeted


@computing("the calibration of sparse weights")
@torch.no_grad()
def sparsify_weights(model: nn.Module, recipe: Recipe, batches: Sequence[torch.Tensor] = ()) -> None:
    """Set weights of the targeted linear layers to zero in place.

    They are ranked by |W| or, as Wanda does, by |W_ij|·‖x_j‖₂, of each decoder layer behind the sparse ones before it
    (https://arxiv.org/abs/2306.11695).

    Args:
        model: A causal language model in evaluation mode.
        recipe: What is made sparse.
        batches: LongTensors [prompts, length] of calibration text, for wanda.

    Raises:
        RunError: Something is not finite.
    """
    check(model, recipe, names.WEIGHTS, batches)
    targets = targeted(model, recipe.targets)
    if recipe.criterion == names.MAGNITUDE:
        for name in targets:
            zero(model.get_submodule(name), recipe, name)
        return
    layers = layers_of(model, targets)
    for layer in walk(model, batches):
        own = layers[layer.index]
        with watched(model, own, batches, sampled=False) as seen:
            layer.run()
        for name in own:
            zero(model.get_submodule(name), recipe, name, seen[name].norm)
        # the layers behind are measured on what this one now gives
        layer.run()


def zero(layer, recipe: Recipe, name: str, norms: torch.Tensor | None = None) -> None:
    """Set to zero what the recipe does not keep of a layer's weight.

    Args:
        layer: nn.Linear or Conv1D.
        recipe: What is made sparse.
        name: The layer's, for the message.
        norms: ‖x_j‖₂ of what it reads, [in]; None for magnitude.

    Raises:
        RunError: A score is not finite.
    """
    # [out, in]
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    scores = weight.abs().float() if norms is None else weight.abs().float() * norms
    if not torch.isfinite(scores).all():
        raise not_finite(f"{name}.weight times what it reads is NaN or Inf", weight.dtype)
    weight.mul_(kept(scores, recipe))


def kept(scores: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return which weights stay: n of m along the input dimension, or a share.

    A share is of every row by wanda, of the whole matrix by magnitude.

    Args:
        scores: Float tensor [out, in].
        recipe: What is made sparse.

    Returns:
        BoolTensor like `scores`.
    """
    if recipe.n_of_m:
        return kept_n_of_m(scores, *recipe.n_of_m)
    if recipe.criterion == names.WANDA:
        return kept_share(scores, recipe.share)
    return kept_share(scores.flatten(), recipe.share).view_as(scores)
