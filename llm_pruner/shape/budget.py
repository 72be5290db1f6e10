"""From a number of parameters to widths that are the same in every layer."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import (
    ATTENTION,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    MLP,
    Axis,
    Layers,
    Widths,
    heads_per_group,
    is_grouped,
    names_of,
    with_heads,
)
from llm_pruner.shape.counter import ParameterCounter

# how far a shape may be from the parameters wanted of the whole model, or from a share of a part
TOLERANCE = 0.01


@dataclass(frozen=True)
class Goal:
    """How many parameters should be left.

    Attributes:
        parameters: Their number.
        whole: Whether it is that of the whole model, or of attention and MLP.
    """

    parameters: float
    whole: bool

    def count(self, counter: ParameterCounter, after: Layers) -> float:
        """Return the parameters that the goal is about.

        Args:
            counter: Of the model.
            after: The widths of every layer.
        """
        return counter.total(after) if self.whole else counter.decoder(after)

    def missed(self, counter: ParameterCounter, after: Layers) -> float:
        """Return how far the model is from the goal, as a share of the goal or, of a part, of what that part was.

        Args:
            counter: Of the model.
            after: The widths of every layer.
        """
        base = self.parameters if self.whole else self.count(counter, counter.full)
        return abs(self.count(counter, after) - self.parameters) / max(base, 1)

    def check(self, counter: ParameterCounter, after: Layers, axes: Iterable[Axis]) -> None:
        """Raise a PlanError when the nearest shape misses the goal by more than TOLERANCE.

        Args:
            counter: Of the model.
            after: The widths of every layer in the nearest shape.
            axes: The axes that shrink, for the message.
        """
        if self.missed(counter, after) <= TOLERANCE:
            return
        found, what = self.count(counter, after), names_of(axes)
        if self.whole:
            raise PlanError(
                f"{what} cannot meet the budget: {self.parameters:,} parameters are wanted, the nearest is {found:,}; "
                "ask for that, or let `axes` name more"
            )
        full = self.count(counter, counter.full)
        raise PlanError(
            f"{what} cannot meet the budget: {1 - self.parameters / full:.4f} of the attention and MLP parameters "
            f"should go, the nearest is {1 - found / full:.4f}; ask for that, or let `axes` name more"
        )


def widths_by_parameters(
    counter: ParameterCounter, axes: Iterable[Axis], goal: Goal, legal: Callable[[Widths], bool]
) -> Widths:
    """Return the widths, alike in every layer, at which the goal is met.

    Every axis shrinks by one ratio to the nearest legal shape, whole query heads in every group; then neurons fill what
    rounding left, by their true cost.

    Args:
        counter: Of the model.
        axes: The axes that may shrink.
        goal: The parameters that should be left.
        legal: Returns whether a class holds a width.

    Raises:
        PlanError: No shape is legal, or the nearest misses the goal by more than TOLERANCE.
    """
    before, axes = counter.before, set(axes)
    least = smallest(before, axes)
    # Then the first legal shape is the nearest.
    too_small = goal.parameters < goal.count(counter, counter.everywhere(least))
    best = None
    for shape in chain([least] * too_small, _shapes(before, axes, _ratio(counter, axes, goal))):
        if not legal(shape):
            continue
        if MLP in axes:
            shape = filled_with_neurons(counter, shape, goal)
        missed = goal.missed(counter, counter.everywhere(shape))
        if best is None or missed < best[0]:
            best = missed, shape
        if missed <= TOLERANCE or too_small:
            break
    if best is None:
        raise PlanError(f"no class holds a shape with fewer {names_of(axes)} and all else as it is")
    goal.check(counter, counter.everywhere(best[1]), axes)
    return best[1]


def filled_with_neurons(counter: ParameterCounter, shape: Widths, goal: Goal) -> Widths:
    """Return the shape with as many neurons as the goal leaves.

    Args:
        counter: Of the model.
        shape: The widths, whose neurons are replaced: by at least one, at most those of the model.
        goal: The parameters that should be left.
    """
    count = goal.count(counter, counter.everywhere(shape))
    one = count - goal.count(counter, counter.everywhere(shape.but({MLP: shape[MLP] - 1})))
    neurons = shape[MLP] + round((goal.parameters - count) / one)
    return shape.but({MLP: min(max(1, neurons), counter.before[MLP])})


def smallest(before: Widths, axes: Iterable[Axis]) -> Widths:
    """Return the widths with one unit of each axis, of heads one in every kv group that stays.

    Args:
        before: The widths of every layer.
        axes: The axes that shrink.
    """
    axes = set(axes)
    kv_heads = 1 if KV_HEADS in axes or HEADS in axes and not is_grouped(before) else before[KV_HEADS]
    shape = with_heads(before, kv_heads, 1 if HEADS in axes else heads_per_group(before))
    return shape.but({axis: 1 for axis in axes if axis not in ATTENTION})


def _ratio(counter: ParameterCounter, axes: set[Axis], goal: Goal) -> float:
    """The ratio by which every axis would shrink if widths could be fractions."""
    before = counter.before
    shrinking = set(axes)
    if KV_HEADS in axes and is_grouped(before) or HEADS in axes and not is_grouped(before):
        shrinking |= {HEADS, KV_HEADS}
    low, high = 0.0, 1.0
    for _ in range(50):
        ratio = (low + high) / 2
        fractions = {axis: before[axis] * (1 - ratio) for axis in shrinking}
        widths = before.but(fractions)  # type: ignore[arg-type]  # only counted, never built
        if goal.count(counter, counter.everywhere(widths)) > goal.parameters:
            low = ratio
        else:
            high = ratio
    return (low + high) / 2


def _shapes(before: Widths, axes: set[Axis], ratio: float) -> Iterator[Widths]:
    """Yield shapes around `ratio`: heads rounded ever further, and for each number of heads so the hidden channels.

    Other axes shrink by the ratio. Where whole kv groups go, query heads inside them only go when nothing else is left.
    """
    of_kv, most = not is_grouped(before) or KV_HEADS in axes, heads_per_group(before)
    inside = range(most, 0, -1) if of_kv and HEADS in axes else [most]
    others = {axis: max(1, before[axis] - round(ratio * before[axis])) for axis in axes - {HIDDEN, *ATTENTION}}
    units = before[KV_HEADS] if of_kv else most
    for per_group in inside:
        for fewer in _around(round(ratio * units), units) if HEADS in axes or KV_HEADS in axes else (0,):
            kv_heads = before[KV_HEADS] - (fewer if of_kv else 0)
            shape = with_heads(before, kv_heads, per_group - (0 if of_kv else fewer)).but(others)
            hidden = round(ratio * before[HIDDEN]) if HIDDEN in axes else 0
            near = _around(hidden, before[HIDDEN]) if HIDDEN in axes else (0,)
            for narrower in islice(near, 2 * before[HEAD_DIM]):
                yield shape.but({HIDDEN: before[HIDDEN] - narrower})


def _around(wanted: int, units: int) -> Iterator[int]:
    """How many of `units` may go, those nearest to `wanted` first."""
    for distance in range(units + 1):
        if 0 <= wanted - distance < units:
            yield wanted - distance
        if distance and wanted + distance < units:
            yield wanted + distance


def widths_by_iteration(counter: ParameterCounter, iteration: int) -> Widths:
    """Return AMP's widths: as many parameters go as `iteration` whole layers have.

    ρ' = iteration·params(layer 0)/(attention + MLP). Every layer loses round(ρ'·heads) heads, at most all but one, and
    the rounding error is made good in neurons: round(ρ'·heads − heads removed + ρ'·intermediate). With grouped queries
    every group loses the same. https://arxiv.org/abs/2504.21174

    Args:
        counter: Of the model.
        iteration: The number of layers.

    Raises:
        PlanError: Nothing would be left.
    """
    before = counter.before
    share = iteration * counter.of_layer_0() / counter.decoder(counter.full)
    if not share < 1:
        raise PlanError(f"iteration {iteration} leaves nothing of {counter.num_layers} layers; ask for fewer")
    groups, of_each = _head_groups(before)
    heads = groups * min(round(share * of_each), of_each - 1)
    neurons = round(share * before[HEADS] - heads + share * before[MLP])
    return _fewer(before, heads, neurons)


def widths_by_structure(
    counter: ParameterCounter, structure: str, share: float, axes: Iterable[Axis], remove_heads: int
) -> Widths:
    """Return the widths of FLAP's uniform structures, https://arxiv.org/abs/2312.11983.

    UL-UM: ⌊share·n⌋ heads and neurons go. UL-MM: ⌊remove_heads / layers⌋ heads go in each layer, and neurons until the
    share of the parameters is met. With grouped queries heads go evenly, in every group as many as fit.

    Args:
        counter: Of the model.
        structure: UL-UM or UL-MM.
        share: Of heads and neurons, or of the attention and MLP parameters, that goes.
        axes: The axes that shrink, of UL-UM.
        remove_heads: Query heads that UL-MM removes in the whole model.

    Raises:
        PlanError: `remove_heads` is too small or too large.
    """
    before = counter.before
    groups, of_each = _head_groups(before)
    if structure == "UL-UM":
        heads = groups * math.floor(share * of_each + 1e-6) if HEADS in axes else 0
        return _fewer(before, heads, math.floor(share * before[MLP] + 1e-6) if MLP in axes else 0)
    heads = groups * (remove_heads // counter.num_layers // groups)
    if remove_heads and not heads:
        raise PlanError(
            f"remove_heads {remove_heads} is not one head of every kv group in each layer; "
            f"the least is {groups * counter.num_layers}"
        )
    if heads >= before[HEADS]:
        raise PlanError(f"remove_heads {remove_heads} leaves no head in {counter.num_layers} layers; ask for fewer")
    rest = share * counter.decoder(counter.full) / counter.num_layers
    shape = _fewer(before, heads, 0)
    rest -= counter.cost(before, {axis: before[axis] - shape[axis] for axis in before.prunable})
    if rest < 0:
        raise PlanError(f"remove_heads {remove_heads} is more than {share:g} of the parameters; ask for fewer")
    return _fewer(before, heads, math.floor(rest / counter.cost(before, {MLP: 1}) + 1e-6))


def _head_groups(before: Widths) -> tuple[int, int]:
    """(groups that lose heads alike, heads of each)."""
    groups = before[KV_HEADS] if is_grouped(before) else 1
    return groups, before[HEADS] // groups


def _fewer(before: Widths, heads: int, neurons: int) -> Widths:
    """PlanError when that leaves no neuron."""
    if neurons >= before[MLP]:
        raise PlanError(f"{neurons} of {before[MLP]} neurons would go; ask for less, or for more heads")
    fewer: Mapping[Axis, int] = {HEADS: heads, KV_HEADS: 0 if is_grouped(before) else heads, MLP: neurons}
    return before.but({axis: before[axis] - number for axis, number in fewer.items()})
