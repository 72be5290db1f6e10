"""Pruning a model in memory, without files and without output."""

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llm_pruner.methods import Method, Pruned, Reconstruct, ScoreAndCut, settled
from llm_pruner.shape.draft import draft
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Budget, Replay, Request

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
        prompts: LongTensors [length] of calibration text, for methods that need it; mixed where it is of several kinds,
            since some measurements take the first ones.

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
    made = draft(how_much, _config(model), method)
    training = model.training
    model.eval()
    pruned = settled(method, made.is_copy).prune(model, made, prompts)
    return PrunedModel(pruned.model.train(training), pruned.plan)


def prune_successively(
    model, sizes: Sequence[Budget], method: Reconstruct | None = None, prompts: "Sequence[torch.Tensor] | None" = None
) -> Iterator[PrunedModel]:
    """Prune a causal language model in memory to several sizes, each after the first from the model of the one before.

    Args:
        model: As in `prune`.
        sizes: The shares of the attention and MLP parameters that should go, the smallest first.
        method: The options of the reconstruction; by default Reconstruct().
        prompts: LongTensors [length] of calibration text.

    Yields:
        Each pruned model, in evaluation mode, and its plan. It must not change until the next one has been made.

    Raises:
        PlanError: The family is not supported, or a size has no shape inside that of the one before.
        UsageError: The sizes do not get smaller by heads and neurons, or prompts are missing.
        RunError: Something is not finite, or memory runs out.
    """
    method, config = method or Reconstruct(), _config(model)
    drafts = [draft(size, config, method) for size in sizes]
    # `map` keeps none of them
    yield from map(_model_and_plan, method.prune_successively(model.eval(), drafts, prompts))


def _model_and_plan(pruned: Pruned) -> PrunedModel:
    return PrunedModel(pruned.model, pruned.plan)


def _config(model):
    """The configuration of a model, with its dtype."""
    config = copy.deepcopy(model.config)
    # a config does not learn of `model.to(dtype)`, and budgets may be in bytes
    config.dtype = model.dtype
    return config
