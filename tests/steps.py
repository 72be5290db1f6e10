"""The middle of a run on a model in memory: shape → evidence → scores → plan with its kept units → cut."""

from llm_pruner.calibration.weights import Weights
from llm_pruner.config.prune import Options
from llm_pruner.importance import READ, evidence
from llm_pruner.model.axes import HIDDEN
from llm_pruner.pruning import choose_units, decide_widths, prune_model
from llm_pruner.shape.draft import groups_to_score, shape_of
from tests import tiny


def options_for(ratios: dict[str, float] | None, importance: str = "magnitude", **options) -> Options:
    """Options with these width ratios, without hidden channels where the criterion does not score them; or without
    ratios, with a budget among `options`."""
    if ratios is not None:
        kinds = (*READ, HIDDEN) if HIDDEN in evidence.importance.get(importance).kinds else READ
        options["prune"] = ",".join(f"{kind}={ratio}" for kind, ratio in ratios.items() if kind in kinds)
    return Options(model="tiny", importance=importance, **options)


def prompts(seed: int = 0):
    """Calibration prompts of two lengths."""
    return [*tiny.tokens(6, 16, seed=seed), *tiny.tokens(2, 9, seed=seed)]


def planned(model, ratios: dict[str, float] | None, importance: str = "magnitude", seed: int = 0, **options):
    """(groups, plan with kept units, new config)."""
    options = options_for(ratios, importance, seed=seed, **options)
    criterion = evidence.effective(options)
    shape = shape_of(options, model.config, criterion)
    weights = Weights(dict(model.named_parameters()))
    found = evidence.gather(model, shape, groups_to_score(shape), criterion, options, weights, prompts(seed))
    plan, config = decide_widths(model, shape, found, options)
    return shape.groups, choose_units(plan, shape, found, options), config


def pruned(model, ratios: dict[str, float] | None, importance: str = "magnitude", seed: int = 0, **options):
    return prune_model(model, options_for(ratios, importance, seed=seed, **options), prompts(seed))[0]
