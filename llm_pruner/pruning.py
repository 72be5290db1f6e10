"""Pruning a model in memory: what `run` does between loading and saving."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llm_pruner import importance
from llm_pruner.config.prune import Options
from llm_pruner.config.prune_rules import validate_pruning, wants_best
from llm_pruner.errors import UsageError
from llm_pruner.importance import WEIGHTS, Criterion, evidence
from llm_pruner.importance.evidence import Found
from llm_pruner.importance.selection import choose
from llm_pruner.shape.draft import Shape, decided, groups_to_score, shape_of
from llm_pruner.shape.plan import Plan, make_plan

if TYPE_CHECKING:
    import torch


def prune_model(model, options: Options, prompts: "Sequence[torch.Tensor] | None" = None):
    """(pruned model, its Plan). `model` gives up its tensors on the way.

    prompts: LongTensors [length] to calibrate on, for methods that need it; where nothing else is asked for, with
    prompts the method is `best`, without magnitude. Of `options` only what says shape and units counts. Errors as in
    `run`; UsageError too when prompts are needed and missing.
    """
    validate_pruning(options)
    if options.plan:
        options = replayed(options)
    wanted = wants_best(options)
    if wanted or (wanted is None and prompts):
        options = replace(options, method="best")
    criterion = evidence.effective(options)
    config = copy.deepcopy(model.config)
    config.dtype = model.dtype  # a config does not learn of `model.to(dtype)`, and budgets may be in bytes
    shape = shape_of(options, config, criterion)
    options = settled(options, shape)
    training = model.training
    model.eval()
    if options.method:
        from llm_pruner.reconstruction.method import prune_best

        if not prompts:
            raise UsageError("method best needs calibration prompts")
        best = prune_best(model, shape, options, prompts)
        return best.model.train(training), best.plan
    found = found_in(model, shape, groups_to_score(shape), criterion, options, prompts)
    plan, config = decide_widths(model, shape, found, options)
    plan = choose_units(plan, shape, found, options)
    return change(model, shape, plan, config, found.means, options)[0].train(training), plan


def replayed(options: Options) -> Options:
    """The options with what the plan to replay says about how it was made, as far as they say nothing themselves."""
    saved = Plan.load(options.plan)
    name, calibration = saved.importance.split(" ")[0], saved.calibration or {}
    return replace(
        options,
        importance=name if name in importance.available() else options.importance,
        seed=saved.seed,
        compensate=options.compensate or saved.compensate,
        calibration_data=options.calibration_data or calibration.get("data"),
        nsamples=options.nsamples or calibration.get("nsamples"),
        calibration_seq_len=options.calibration_seq_len or calibration.get("seq_len"),
    )


def settled(options: Options, shape: Shape) -> Options:
    """The options without a compensation, or a rebuild, when there is nothing to make up for."""
    if shape.after == shape.ledger.all_layers(shape.ledger.before) and not shape.depth:
        return replace(options, compensate="none", method=None)
    return options


def found_in(model, shape: Shape, to_score, criterion: Criterion, options: Options, prompts) -> Found:
    """What `gather` finds in the model. RunError, naming the tensor, when its weights are not all finite."""
    from llm_pruner.calibration.weights import Weights

    weights = Weights(dict(model.named_parameters()))
    if evidence.needs(options, criterion, bool(to_score)) - {WEIGHTS}:
        if not prompts or max(map(len, prompts)) < 2:
            raise UsageError("calibration needs prompts of at least two tokens")
        weights.check_all_finite()  # before the text runs through, or a layer is named for what a weight did
        return evidence.gather(model, shape, to_score, criterion, options, weights, prompts)
    found = evidence.gather(model, shape, to_score, criterion, options, weights, prompts)
    weights.check_all_finite()
    return found


def plan_for(model, shape: Shape, after, options: Options) -> tuple[Plan, object]:
    """(plan without or, for a replay, with its kept units; new config)."""
    plan, new_config = make_plan(model, shape.groups, after, biases=options.compensate == "bias")
    if shape.saved:
        saved = shape.saved
        made = {"importance": saved.importance, "seed": saved.seed, "calibration": saved.calibration}
        return replace(plan, kept=saved.kept, compensate=options.compensate or "none", **made), new_config
    name = options.method or options.importance or "magnitude"
    name = name if options.criterion == "standard" else f"{name} ({options.criterion})"
    calibration = None
    if options.calibration_data:
        calibration = {
            "data": options.calibration_data,
            "nsamples": options.nsamples,
            "seq_len": options.calibration_seq_len,
        }
    made = {"importance": name, "seed": options.seed, "calibration": calibration}
    return replace(plan, compensate=options.compensate or "none", **made), new_config


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
    from llm_pruner.model.surgery import cut, mask

    biases = None
    if options.compensate == "bias":
        from llm_pruner.reconstruction.bias import output_biases

        biases = output_biases(shape.groups, plan, dict(model.named_parameters()), means)
    if not options.mask_only:
        return cut(model, shape.groups, plan, new_config, biases), new_config
    every = shape.ledger.all_layers(plan.before)
    _, same_shape = make_plan(model, shape.groups, every, biases=bool(biases))
    return mask(model, shape.groups, plan, same_shape, biases), same_shape
