"""Pruning a model in memory: what `run` does between loading and saving."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_pruner import evidence
from llm_pruner.config import Options
from llm_pruner.evidence import Found
from llm_pruner.plan import Plan, make_plan
from llm_pruner.selection import choose
from llm_pruner.shape import Shape, decided, groups_to_score, shape_of

if TYPE_CHECKING:
    import torch


def prune_model(model, options: Options, prompts: "Sequence[torch.Tensor] | None" = None):
    """(pruned model, its Plan). `model` gives up its tensors on the way.

    prompts: LongTensors [length] to calibrate on, for criteria and compensations that need it. Of `options` only
    what says shape and units counts. Errors as in `run`.
    """
    from llm_pruner.weights import Weights

    criterion = evidence.effective(options)
    shape = shape_of(options, model.config, criterion)
    weights = Weights(dict(model.named_parameters()))
    found = evidence.gather(model, shape, groups_to_score(shape), criterion, options, weights, prompts)
    weights.check_all_finite()
    plan, config = decide_widths(model, shape, found, options)
    plan = choose_units(plan, shape, found, options)
    return change(model, shape, plan, config, found.means, options)[0], plan


def plan_for(model, shape: Shape, after, options: Options) -> tuple[Plan, object]:
    """(plan without or, for a replay, with its kept units; new config)."""
    plan, new_config = make_plan(model, shape.groups, after, biases=options.compensate == "bias")
    if shape.saved:
        saved = shape.saved
        return replace(plan, kept=saved.kept, importance=saved.importance, seed=saved.seed), new_config
    name = options.importance if options.criterion == "standard" else f"{options.importance} ({options.criterion})"
    return replace(plan, importance=name, seed=options.seed), new_config


def decide_widths(model, shape: Shape, found: Found, options: Options) -> tuple[Plan, object]:
    """(plan without its kept units, new config), by the scores where they decide. PlanError, see `allocate`."""
    return plan_for(model, shape, decided(shape, options, evidence.ordered(found.scores, options)), options)


def choose_units(plan: Plan, shape: Shape, found: Found, options: Options) -> Plan:
    """The plan with the units that stay."""
    if plan.kept is not None:
        return plan
    ranked = evidence.ordered(found.scores, options)
    return replace(plan, kept=choose(shape.groups, ranked, plan.before, plan.after))


def change(model, shape: Shape, plan: Plan, new_config, means: Mapping, options: Options):
    """(the cut or masked model, its config)."""
    from llm_pruner.surgery import cut, mask

    biases = None
    if options.compensate == "bias":
        from llm_pruner.compensate.bias import output_biases

        biases = output_biases(shape.groups, plan, dict(model.named_parameters()), means)
    if not options.mask_only:
        return cut(model, shape.groups, plan, new_config, biases), new_config
    every = shape.ledger.all_layers(plan.before)
    _, same_shape = make_plan(model, shape.groups, every, biases=bool(biases))
    return mask(model, shape.groups, plan, same_shape, biases), same_shape
