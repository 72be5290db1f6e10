"""From options and a configuration to the shape: which widths every layer will have, or what decides about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llm_pruner.config.prune import BUDGETS, Options
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.importance import Criterion
from llm_pruner.importance.selection import check_replay, scored_groups
from llm_pruner.model.families import Layers, family_of, holds, widths_of
from llm_pruner.model.groups import (
    FIELD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    MLP,
    Group,
)
from llm_pruner.model.trace import trace_groups
from llm_pruner.shape.allocate import adaptive_groups, allocate, uniform
from llm_pruner.shape.budget import (
    Budget,
    Ledger,
    goal_of,
    share_of,
    smallest,
    widths_by_iteration,
    widths_by_parameters,
    widths_by_structure,
)
from llm_pruner.shape.plan import Plan, meta_model
from llm_pruner.shape.widths import parse_prune, parse_target, ratio_of_one_step, widths_by_ratio, widths_by_target


@dataclass(frozen=True)
class Shape:
    """What was asked for, as far as it is known before anything is scored.

    after: the widths of every layer, or None when scores decide. share: of the attention and MLP parameters, to be
    removed. requested: what was asked for, by the names of Plan.removed. saved: the plan to replay.
    budget: what a search has to meet; `after` is then where it starts. depth: how many layers stay, None for all.
    """

    skeleton: object
    groups: list[Group]
    ledger: Ledger
    kinds: tuple[str, ...] = ()
    after: Layers | None = None
    share: float | None = None
    requested: Mapping[str, float] = field(default_factory=dict)
    saved: Plan | None = None
    budget: Budget | None = None
    depth: int | None = None


def shape_of(options: Options, config, criterion: Criterion) -> Shape:
    """The shape that `options` ask for. PlanError when a model of this configuration cannot have it, UsageError
    when the criterion does not score what would have to be ranked."""
    shape = _asked(options, config, criterion)
    narrower = shape.after is not None and shape.after[0].hidden_size != shape.ledger.before.hidden_size
    if options.method and narrower and family_of(config.model_type).post_norms:
        raise PlanError(
            f"{config.model_type} normalises what goes into its residual stream, and no rotation goes through that; "
            "leave hidden out of --prune, or use --importance magnitude"
        )
    for group in groups_to_score(shape):
        if group.kind not in criterion.kinds:
            raise UsageError(
                f"importance {criterion.name} does not score {group.kind}; known: {', '.join(criterion.kinds)}"
            )
    return shape


def _asked(options: Options, config, criterion: Criterion) -> Shape:
    skeleton = meta_model(config)
    groups = trace_groups(skeleton)
    before = widths_of(config)
    shapes = {name: tuple(p.shape) for name, p in skeleton.named_parameters()}
    ledger = Ledger(shapes, tuple(groups), before, config.num_hidden_layers)
    if options.plan:
        saved = Plan.load(options.plan)
        try:
            check_replay(saved, config, groups)
        except PlanError as error:
            raise PlanError(f"--plan {options.plan}: {error}") from error
        return Shape(skeleton, groups, ledger, after=saved.after, saved=saved)
    if options.target:
        target = parse_target(options.target, config)
        depth = _depth(target.pop("layers", None), options, config)
        shape = Shape(skeleton, groups, ledger, after=ledger.all_layers(widths_by_target(before, target)), depth=depth)
        return shape if depth else _changed(shape, f"--target {options.target}")
    derived = family_of(config.model_type).derived_head_dim
    by_ratio = not options.structure and all(
        getattr(options, name) is None for name in BUDGETS if name != "pruning_ratio"
    )
    hidden = by_ratio and HIDDEN in criterion.kinds
    goal = goal_of(options, next(skeleton.parameters()).element_size())
    kinds = [HIDDEN] if hidden else []
    if options.method and not by_ratio and not derived:
        whole = goal is not None and not options.per_layer and not family_of(config.model_type).post_norms
        kinds = [HIDDEN] * whole + [KV_HEADS] * before.grouped
    default = ",".join((*kinds, HEADS, MLP))
    ratios = parse_prune(options.prune or default, options.pruning_ratio if by_ratio else 0.0)
    kinds = tuple(ratios)
    if by_ratio:
        after = widths_by_ratio(before, ratios, derived, options.round_to)
        requested = {FIELD[kind]: ratio for kind, ratio in ratios.items()}
        shape = Shape(skeleton, groups, ledger, kinds, ledger.all_layers(after), requested=requested)
        if not any(ratios.values()):
            return shape
        hint = f"the smallest ratio that takes a whole step is {ratio_of_one_step(before, ratios, options.round_to):g}"
        return _changed(shape, f"the ratio {max(ratios.values()):g}", hint)
    if derived and HIDDEN not in kinds and set(kinds) - {MLP}:
        raise PlanError(
            f"{config.model_type} derives head_dim from hidden_size / num_attention_heads, so heads cannot go alone; "
            "use --param_ratio R --prune mlp, or a width ratio for hidden and heads"
        )
    share = share_of(ledger, options, goal)
    requested = {"decoder": share}
    if goal is not None:
        requested = {"parameters": 1 - goal / ledger.total(ledger.all_layers(before))}
    if options.remove_heads is not None:
        requested[FIELD[HEADS]] = options.remove_heads / (before.num_attention_heads * ledger.num_layers)
    shape = Shape(skeleton, groups, ledger, kinds, None, share, requested)
    if not share:
        return replace(shape, after=ledger.all_layers(before))
    if HIDDEN not in kinds and not share < 1:
        least = ledger.total(ledger.all_layers(smallest(before, kinds)))
        raise PlanError(
            f"{share:.4f} times the attention and MLP parameters would have to go; ask for less (the nearest is a "
            f"model of {least:,} parameters), or let the rest shrink too: --prune hidden,heads,mlp"
        )
    if options.structure and options.structure.startswith("AL"):
        return shape
    budget = Budget(goal, True)
    if goal is None:
        budget = Budget(ledger.decoder(ledger.all_layers(before)) * (1 - share), False)
    after = ledger.all_layers(_uniform_widths(options, shape, config, budget))
    if goal is not None:
        budget.check(ledger, after, kinds)
    if options.method and options.iteration is None:
        shape = replace(shape, budget=budget)
    return _changed(replace(shape, after=after), _budget(options), _least(ledger))


def _depth(number: int | None, options: Options, config) -> int | None:
    """How many layers stay when a target names `number`; None for all. PlanError where that cannot be."""
    if number is None or number == config.num_hidden_layers:
        return None
    if number > config.num_hidden_layers:
        raise PlanError(f"--target num_hidden_layers={number} is more than the model has ({config.num_hidden_layers})")
    if not options.method:
        raise PlanError("whole layers go with --method best only; leave num_hidden_layers out of --target")
    return number


def _uniform_widths(options: Options, shape: Shape, config, budget: Budget):
    ledger = shape.ledger
    if options.structure == "UL-MM" or options.structure == "UL-UM" and options.pruning_ratio is not None:
        return widths_by_structure(ledger, options.structure, shape.share, shape.kinds, options.remove_heads or 0)
    if options.iteration is not None:
        return widths_by_iteration(ledger, options.iteration)
    return widths_by_parameters(ledger, shape.kinds, budget.goal, budget.whole, lambda widths: holds(config, widths))


def variant(shape: Shape, config) -> Shape:
    """The shape of a model of another configuration (fewer layers, an lm_head of its own), without widths."""
    skeleton = meta_model(config)
    groups, before = trace_groups(skeleton), shape.ledger.before
    shapes = {name: tuple(p.shape) for name, p in skeleton.named_parameters()}
    ledger = Ledger(shapes, tuple(groups), before, config.num_hidden_layers)
    return replace(shape, skeleton=skeleton, groups=groups, ledger=ledger, after=None)


def _budget(options: Options) -> str:
    return next(f"{name} {getattr(options, name)}" for name in BUDGETS if getattr(options, name) is not None)


def _least(ledger: Ledger) -> str:
    neuron = ledger.cost(ledger.before, intermediate_size=1)
    share = neuron / ledger.decoder(ledger.all_layers(ledger.before))
    return f"a neuron of one layer is {share:.3g} of the attention and MLP parameters, ask for several in every layer"


def _changed(shape: Shape, what: str, hint: str = "ask for less width") -> Shape:
    if shape.after == shape.ledger.all_layers(shape.ledger.before):
        raise PlanError(f"{what} changes nothing; {hint}")
    return shape


def groups_to_score(shape: Shape) -> list[Group]:
    """The groups whose units have to be ranked, in the units that are ranked."""
    if shape.saved:
        return []
    if shape.after is None:
        return adaptive_groups(shape.groups, shape.ledger.before, shape.kinds)
    return scored_groups(shape.groups, shape.ledger.before, shape.after)


def decided(shape: Shape, options: Options, scores) -> Layers:
    """The widths of every layer, by the scores where they were not known before. PlanError, see `allocate`."""
    if shape.after is not None:
        return shape.after
    groups = groups_to_score(shape)
    exact, ledger, config = options.pruning_ratio is None, shape.ledger, shape.skeleton.config
    layers = allocate(ledger, groups, scores, shape.share, options.structure, options.remove_heads or 0, exact)
    if options.uniform:
        biases = options.compensate == "bias" and family_of(config.model_type).output_biases is not None
        layers = uniform(ledger, layers, lambda widths: holds(config, widths, biases))
    goal = goal_of(options, next(shape.skeleton.parameters()).element_size())
    if goal is not None:
        Budget(goal, True).check(ledger, layers, shape.kinds)
    return _changed(replace(shape, after=layers), _budget(options), _least(ledger)).after
