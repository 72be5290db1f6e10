"""The middle of a run on a model in memory: draft → scores → plan with its kept units → cut."""

from llm_pruner.config.prune import PruneOptions
from llm_pruner.importance import OUTPUT_AXES, criterion_of
from llm_pruner.model.axes import HIDDEN
from llm_pruner.shape.draft import draft, groups_to_score
from tests.support import tiny
from tests.support.in_memory import asked, prune_model


def options_for(ratios: dict | None, importance: str = "magnitude", **options) -> PruneOptions:
    """PruneOptions with these width ratios, without hidden channels where the criterion does not score them; or without
    ratios, with a budget among `options`."""
    if ratios is not None:
        axes = (*OUTPUT_AXES, HIDDEN) if HIDDEN in criterion_of(importance).axes else OUTPUT_AXES
        names = {axis.name for axis in axes}
        options["prune"] = ",".join(f"{axis}={ratio}" for axis, ratio in ratios.items() if str(axis) in names)
    return PruneOptions(model="tiny", importance=importance, **options)


def prompts(seed: int = 0):
    """Calibration prompts of two lengths."""
    return [*tiny.tokens(6, 16, seed=seed), *tiny.tokens(2, 9, seed=seed)]


def planned(model, ratios: dict | None, importance: str = "magnitude", seed: int = 0, **options):
    """(groups, plan with kept units, new config)."""
    _, request, method = asked(options_for(ratios, importance, seed=seed, **options))
    made = draft(request, model.config, method)
    measured = method.measure(model, made, groups_to_score(made), prompts(seed))
    plan, config = method.plan(made, measured, model)
    return made.traced.groups, method.with_units(plan, made, measured), config


def pruned(model, ratios: dict | None, importance: str = "magnitude", seed: int = 0, **options):
    return prune_model(model, options_for(ratios, importance, seed=seed, **options), prompts(seed))[0]
