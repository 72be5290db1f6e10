"""The middle of a run on a model in memory: trace → widths → plan → kept units."""

from dataclasses import replace

from llm_pruner import importance
from llm_pruner.architectures import family_of, widths_of
from llm_pruner.plan import choose, make_plan, scored_groups
from llm_pruner.surgery import cut
from llm_pruner.trace import trace_groups
from llm_pruner.weights import Weights
from llm_pruner.widths import widths_by_ratio


def planned(model, ratios: dict[str, float], name: str = "magnitude", seed: int = 0):
    """(groups, plan with kept units, new config)."""
    groups = trace_groups(model)
    before = widths_of(model.config)
    after = widths_by_ratio(before, ratios, family_of(model.config.model_type).derived_head_dim)
    plan, config = make_plan(model, groups, after)
    evidence = importance.Evidence(weights=Weights(dict(model.named_parameters())), seed=seed)
    scores = importance.score(scored_groups(groups, before, after), importance.get(name), evidence)
    return groups, replace(plan, kept=choose(groups, scores, before, after)), config


def pruned(model, ratios: dict[str, float], name: str = "magnitude", seed: int = 0):
    groups, plan, config = planned(model, ratios, name, seed)
    return cut(model, groups, plan, config)
