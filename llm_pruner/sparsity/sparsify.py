"""Sparse activations or weights of a model in memory."""

from collections.abc import Sequence
from typing import Any

import torch

from llm_pruner.calibration.activations import batches_of
from llm_pruner.calibration.memory import tokens_for
from llm_pruner.config.recipe import WEIGHTS, Recipe
from llm_pruner.sparsity.calibration import sparsify_activations
from llm_pruner.sparsity.learn import Learning
from llm_pruner.sparsity.weights import sparsify_weights

# tokens of a batch, each a step of the optimiser
LEARNED = 1024


def sparsify(
    model,
    recipe: Recipe,
    prompts: Sequence[torch.Tensor] | None = None,
    learning: Learning | None = None,
) -> dict[str, Any]:
    """Make the inputs of a model's linear layers sparse as they run, or their weights, once; in place.

    Args:
        model: A causal language model of transformers, in evaluation mode.
        recipe: What is made sparse and how.
        prompts: LongTensors [length] of calibration text, for a recipe that needs some.
        learning: How learnable shifts are trained.

    Returns:
        {decoder layer: its error before and after}, of learnable shifts.

    Raises:
        UsageError: The recipe contradicts itself, or prompts are needed and missing.
        PlanError: The targets mean nothing in this model, or it is sparse already.
        RunError: Something is not finite, or memory runs out.
    """
    tokens = LEARNED if recipe.transform == "learnable" else tokens_for(model)
    batches = batches_of(prompts, tokens) if recipe.needs_text and prompts else []
    if recipe.sparse == WEIGHTS:
        sparsify_weights(model, recipe, batches)
        return {}
    return sparsify_activations(model, recipe, batches, learning)
