"""Pruning a model in memory, without files and without output."""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_pruner.methods import Method, Reconstruct, ScoreAndCut, settled
from llm_pruner.shape.draft import draft
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Replay, Request

if TYPE_CHECKING:
    import torch


class PrunedModel(NamedTuple):
    """The pruned model and its plan."""

    model: Any
    plan: Plan


def prune(
    model, how_much: Request, method: Method | None = None, prompts: "Sequence[torch.Tensor] | None" = None
) -> PrunedModel:
    """Prune a causal language model in memory.

    Args:
        model: A transformers model of a supported family, on any devices. It gives up its tensors on the way.
        how_much: What should go: a Ratio, a Target, a Budget or a Replay.
        method: How units are chosen; by default Reconstruct() where there are prompts, else ScoreAndCut("magnitude").
        prompts: LongTensors [length] of calibration text, for methods that need it.

    Returns:
        The pruned model, in the mode that `model` was in, and the plan.

    Raises:
        PlanError: The family is not supported, or no legal model has the shape that is asked for.
        UsageError: The request contradicts itself or the method, or prompts are needed and missing.
        RunError: Something is not finite, or memory runs out.
    """
    if method is None:
        plain = isinstance(how_much, Replay) or not prompts
        method = ScoreAndCut() if plain else Reconstruct()
    config = copy.deepcopy(model.config)
    # a config does not learn of `model.to(dtype)`, and budgets may be in bytes
    config.dtype = model.dtype
    made = draft(how_much, config, method)
    training = model.training
    model.eval()
    pruned = settled(method, made.is_copy).prune(model, made, prompts)
    return PrunedModel(pruned.model.train(training), pruned.plan)
