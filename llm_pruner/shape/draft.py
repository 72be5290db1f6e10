"""The draft: from a request and a configuration to widths, or to what will decide about them. Nothing is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from llm_pruner.errors import PlanError
from llm_pruner.importance.selection import scored_groups
from llm_pruner.model.axes import ATTENTION, HEADS, HIDDEN, LAYERS, MLP, Axis, Layers, Widths
from llm_pruner.model.families import Family, family_of, holds, widths_of
from llm_pruner.model.groups import Group
from llm_pruner.model.skeleton import meta_model
from llm_pruner.model.trace import trace_groups
from llm_pruner.shape.allocate import adaptive_groups, allocate, uniform
from llm_pruner.shape.budget import (
    Goal,
    smallest,
    widths_by_iteration,
    widths_by_parameters,
    widths_by_structure,
)
from llm_pruner.shape.counter import ParameterCounter
from llm_pruner.shape.plan import Plan, check_replay
from llm_pruner.shape.request import Budget, Ratio, Replay, Request, Target, axis_of, check_scored
from llm_pruner.shape.widths import parse_target, ratio_of_one_step, widths_by_ratio, widths_by_target

if TYPE_CHECKING:
    import torch


LESS_WIDTH = "ask for less width"


class Shaper(Protocol):
    """What a draft asks of a pruning method."""

    @property
    def name(self) -> str:
        """What reports and messages call it."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that it can shrink."""

    @property
    def searches(self) -> bool:
        """Whether it compares several shapes of one size."""

    @property
    def removes_layers(self) -> bool:
        """Whether it can remove whole layers."""

    def usual_axes(self, request: Request, before: Widths, family: Family) -> tuple[Axis, ...]:
        """Return the axes that shrink where the request names none.

        Args:
            request: How much should go.
            before: The widths of every layer.
            family: What is declared of the model's type.
        """

    def check(self, draft: "Draft") -> None:
        """Raise a PrunerError where the method cannot do what the draft asks for."""


@runtime_checkable
class Drafter(Protocol):
    """A method that reads requests itself: its shape does not follow from ratios of axes alone."""

    def draft(self, request: Ratio | Target | Budget, traced: "Traced") -> "Draft":
        """Return the draft of a request.

        Args:
            request: How much should go.
            traced: The model.

        Raises:
            PlanError: A model of this configuration cannot have the shape.
            UsageError: The method cannot do what is asked for.
        """


@dataclass(frozen=True)
class Traced:
    """A model without weights, and what is known about it.

    Attributes:
        config: Its configuration.
        model: The model, on the meta device.
        groups: Its groups.
        counter: Its parameter counter.
    """

    config: Any
    model: Any
    groups: tuple[Group, ...]
    counter: ParameterCounter

    @classmethod
    def of(cls, config: Any, before: Widths | None = None) -> "Traced":
        """Trace a model without weights.

        Args:
            config: The configuration of the model.
            before: Its widths, where they are known.

        Raises:
            PlanError: As in `trace_groups`.
        """
        model = meta_model(config)
        groups = tuple(trace_groups(model))
        shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        number = LAYERS.read(config, family_of(config.model_type))
        return cls(config, model, groups, ParameterCounter(shapes, groups, before or widths_of(config), number))

    @property
    def element_size(self) -> int:
        """Bytes of a parameter."""
        return next(self.model.parameters()).element_size()


@dataclass(frozen=True)
class Fixed:
    """The widths are known. Where there are fewer of them than layers, the method chooses which layers stay.

    Attributes:
        after: The widths of every layer.
    """

    after: Layers


@dataclass(frozen=True)
class Adaptive:
    """Scores will decide the widths of every layer.

    Attributes:
        share: What goes of the attention and MLP parameters.
        structure: AL-AM or AL-MM.
        remove_heads: Query heads that AL-MM removes.
        uniform: Whether the result is rounded to one width for all layers.
        exact: Whether neurons fill the rest of the budget that a large unit leaves.
        goal: The size of the whole model that has to be met, if there is one.
    """

    share: float
    structure: str
    remove_heads: int = 0
    uniform: bool = False
    exact: bool = True
    goal: Goal | None = None


@dataclass(frozen=True)
class Searched:
    """Shapes that meet the goal will be compared.

    Attributes:
        start: The widths of every layer to start from.
        goal: The parameters that should be left.
        depths: Whether fewer layers may be tried too.
    """

    start: Layers
    goal: Goal
    depths: bool = False


@dataclass(frozen=True)
class Replayed:
    """The plan says which units stay.

    Attributes:
        plan: The plan.
    """

    plan: Plan


@dataclass(frozen=True)
class Draft:
    """What was asked for, as far as it is known before anything is loaded.

    Attributes:
        traced: The model.
        shape: What decides the widths.
        axes: Those that shrink; empty where the request sets widths.
        requested: The shares that were asked for, by the names of `Plan.removed`.
        label: The request in a few words.
    """

    traced: Traced
    shape: Fixed | Adaptive | Searched | Replayed
    axes: tuple[Axis, ...] = ()
    requested: Mapping[str, float] = field(default_factory=dict)
    label: str = ""

    @property
    def after(self) -> Layers | None:
        """The widths of every layer, or those that a search starts from; None where scores decide."""
        match self.shape:
            case Fixed(after):
                return after
            case Searched(start):
                return start
            case Replayed(plan):
                return plan.after
        return None

    @property
    def widths(self) -> Layers:
        """`after`, of a draft whose widths no scores decide."""
        assert self.after is not None, "scores decide the widths of an adaptive shape"
        return self.after

    @property
    def is_copy(self) -> bool:
        """Whether nothing changes."""
        return self.after == self.traced.counter.full

    @property
    def removes_layers(self) -> bool:
        """Whether whole layers go."""
        return self.after is not None and len(self.after) < self.traced.counter.num_layers

    @property
    def is_narrower(self) -> bool:
        """Whether hidden channels go."""
        return self.after is not None and self.after[0][HIDDEN] != self.traced.counter.before[HIDDEN]


def draft(request: Request, config: Any, method: Shaper) -> Draft:
    """Make the draft of what is asked for.

    Args:
        request: How much should go.
        config: The configuration of the model.
        method: How it will be pruned.

    Raises:
        PlanError: A model of this configuration cannot have the shape.
        UsageError: The method cannot give it.
    """
    traced = Traced.of(config)
    match request:
        case Replay(plan, where):
            try:
                check_replay(plan, config, traced.groups)
            except PlanError as error:
                raise PlanError(f"{where}: {error}") from error
            made = Draft(traced, Replayed(plan), label=where)
        case _ if isinstance(method, Drafter):
            made = method.draft(request, traced)
        case Target():
            made = by_target(request, traced, method)
        case Ratio():
            made = _by_ratio(request, traced, method)
        case Budget():
            made = _by_budget(request, traced, method)
    method.check(made)
    check_scored((group.axis for group in groups_to_score(made)), method)
    return made


def by_target(request: Target, traced: Traced, method: Shaper) -> Draft:
    """Return the draft of explicit widths, or of a number of layers.

    Args:
        request: The widths.
        traced: The model.
        method: How it will be pruned.

    Raises:
        PlanError: The model cannot have them, or the method removes no layers.
        UsageError: A name or a width is none.
    """
    target = parse_target(request.text, traced.config)
    counter, number, label = traced.counter, target.pop(LAYERS, None), f"`target` {request.text}"
    after = counter.everywhere(widths_by_target(counter.before, target))
    if number is not None and number != counter.num_layers:
        if number > counter.num_layers:
            raise PlanError(f"`target` {LAYERS.field}={number} is more than the model has ({counter.num_layers})")
        if not method.removes_layers:
            raise PlanError(
                f"{method.name} removes no whole layers, as `method=reconstruct` does; "
                f"leave {LAYERS.field} out of `target`"
            )
        return Draft(traced, Fixed(after[:number]), label=label)
    return changed(Draft(traced, Fixed(after), label=label), "ask for fewer layers" if number else LESS_WIDTH)


def _by_ratio(request: Ratio, traced: Traced, method: Shaper) -> Draft:
    family, before = family_of(traced.config.model_type), traced.counter.before
    ratios = request.by_axis(method.usual_axes(request, before, family))
    after = traced.counter.everywhere(widths_by_ratio(before, ratios, family.derived_head_dim, request.round_to))
    requested = {axis.field: ratio for axis, ratio in ratios.items()}
    made = Draft(traced, Fixed(after), tuple(ratios), requested, f"the ratio {max(ratios.values()):g}")
    if not any(ratios.values()):
        return made
    step = ratio_of_one_step(before, ratios, request.round_to)
    return changed(made, f"the smallest ratio that takes a whole step is {step:g}")


def _by_budget(request: Budget, traced: Traced, method: Shaper) -> Draft:
    counter, config = traced.counter, traced.config
    family = family_of(config.model_type)
    axes = tuple(map(axis_of, request.axes)) if request.axes else method.usual_axes(request, counter.before, family)
    if family.derived_head_dim and HIDDEN not in axes and set(axes) & set(ATTENTION):
        raise PlanError(
            f"{config.model_type} derives head_dim from hidden_size / num_attention_heads, so heads cannot go alone; "
            "use `param_ratio=R` `prune=mlp`, or a width ratio for hidden and heads"
        )
    left = request.parameters_left(traced.element_size)
    share = share_of(request, counter, left)
    requested = {"decoder": share}
    if left is not None:
        requested = {"parameters": 1 - left / counter.total(counter.full)}
    if request.remove_heads is not None:
        requested[HEADS.field] = request.remove_heads / (counter.before[HEADS] * counter.num_layers)
    made = Draft(traced, Fixed(counter.full), axes, requested, request.label)
    if not share:
        return made
    _check_share(share, axes, counter)
    whole = None if left is None else Goal(left, True)
    if request.structure is not None and request.adaptive:
        exact = request.ratio is None
        adaptive = Adaptive(share, request.structure, request.remove_heads or 0, request.uniform, exact, whole)
        return replace(made, shape=adaptive)
    goal = whole or Goal(counter.decoder(counter.full) * (1 - share), False)
    after = counter.everywhere(_uniform_widths(request, traced, axes, share, goal))
    if whole:
        goal.check(counter, after, axes)
    shape: Fixed | Searched = Fixed(after)
    if method.searches and request.iteration is None:
        shape = Searched(after, goal, depths=method.removes_layers and request.axes is None)
    return changed(replace(made, shape=shape), _least(counter))


def share_of(request: Budget, counter: ParameterCounter, left: int | None) -> float:
    """Return the share of the attention and MLP parameters that goes.

    Args:
        request: The budget.
        counter: Of the model.
        left: The parameters of the whole model that the budget leaves; None where it is a share. The result is more
            than 1 where they are fewer than the model has outside attention and MLP.

    Raises:
        PlanError: The goal is not less than the model.
    """
    decoder = counter.decoder(counter.full)
    if left is not None:
        total = counter.total(counter.full)
        if left >= total:
            raise PlanError(f"{request.label}: the model has {total:,} parameters; ask for fewer")
        return (total - left) / decoder
    if request.iteration is not None:
        return request.iteration * counter.of_layer_0() / decoder
    share = request.ratio if request.param_ratio is None else request.param_ratio
    assert share is not None, "a budget has exactly one of the sizes"
    return share


def _check_share(share: float, axes: tuple[Axis, ...], counter: ParameterCounter) -> None:
    if HIDDEN not in axes and not share < 1:
        least = counter.total(counter.everywhere(smallest(counter.before, axes)))
        raise PlanError(
            f"{share:.4f} times the attention and MLP parameters would have to go; ask for less (the nearest is a "
            f"model of {least:,} parameters), or let the rest shrink too: `prune=hidden,heads,mlp`"
        )


def _uniform_widths(request: Budget, traced: Traced, axes: tuple[Axis, ...], share: float, goal: Goal) -> Widths:
    counter = traced.counter
    if request.structure == "UL-MM" or request.structure == "UL-UM" and request.ratio is not None:
        return widths_by_structure(counter, request.structure, share, axes, request.remove_heads or 0)
    if request.iteration is not None:
        return widths_by_iteration(counter, request.iteration)
    return widths_by_parameters(counter, axes, goal, lambda widths: holds(traced.config, widths))


def _least(counter: ParameterCounter) -> str:
    share = counter.cost(counter.before, {MLP: 1}) / counter.decoder(counter.full)
    return f"a neuron of one layer is {share:.3g} of the attention and MLP parameters, ask for several in every layer"


def changed(made: Draft, hint: str = LESS_WIDTH) -> Draft:
    """Return the draft. PlanError, with a hint at what to ask for, where nothing would change."""
    if made.is_copy:
        raise PlanError(f"{made.label} changes nothing; {hint}")
    return made


def groups_to_score(made: Draft) -> list[Group]:
    """Return the groups whose units have to be ranked, in the units that are ranked."""
    # a plan, or the method, has chosen
    if isinstance(made.shape, Replayed) or made.removes_layers:
        return []
    if isinstance(made.shape, Adaptive):
        return adaptive_groups(made.traced.groups, made.traced.counter.before, made.axes)
    return scored_groups(made.traced.groups, made.traced.counter.before, made.widths)


def decided(made: Draft, scores: "Mapping[str, torch.Tensor]", biases: bool = False) -> Layers:
    """Return the widths of every layer, by the scores where they were not known before.

    Args:
        made: The draft.
        scores: {group name: scores}, as they are to be ranked.
        biases: Whether the output projections will get biases, which a uniform shape's class then has to hold.

    Raises:
        PlanError: As in `allocate`.
    """
    shape, traced = made.shape, made.traced
    if not isinstance(shape, Adaptive):
        return made.widths
    counter, config = traced.counter, traced.config
    layers = allocate(
        counter, groups_to_score(made), scores, shape.share, shape.structure, shape.remove_heads, shape.exact
    )
    if shape.uniform:
        own = biases and family_of(config.model_type).output_biases is not None
        layers = uniform(counter, layers, lambda widths: holds(config, widths, own))
    if shape.goal is not None:
        shape.goal.check(counter, layers, made.axes)
    return changed(replace(made, shape=Fixed(layers)), _least(counter)).widths
