"""From a share or a number of parameters to widths that are the same in every layer."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice

from llm_pruner.errors import PlanError, UsageError, shown
from llm_pruner.model.families import Layers, Widths
from llm_pruner.model.groups import (
    FIELD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    MLP,
    Group,
)
from llm_pruner.shape.plan import prunable, shapes_after

MOST = 2**62  # parameters, or bytes
TOLERANCE = 0.01  # how far a shape may be from the parameters wanted of the whole model, or from a share of a part


@dataclass(frozen=True)
class Ledger:
    """Counts the parameters of a model whose layers have other widths. shapes: {parameter: shape} of the model."""

    shapes: Mapping[str, tuple[int, ...]]
    groups: tuple[Group, ...]
    before: Widths
    num_layers: int

    def total(self, after: Layers) -> float:
        """Parameters of the whole model, tied ones once. Widths may be fractions."""
        return sum(math.prod(shape) for shape in shapes_after(self.shapes, self.groups, self.before, after).values())

    def decoder(self, after: Layers) -> float:
        """Parameters of attention and MLP: of all tensors that heads or neurons run through."""
        shapes = shapes_after(self.shapes, self.groups, self.before, after)
        return sum(math.prod(shapes[name]) for name in prunable(self.groups))

    def all_layers(self, widths: Widths) -> Layers:
        return (widths,) * self.num_layers

    def cost(self, base: Widths, **fewer: int) -> int:
        """Attention and MLP parameters that go when one layer has `fewer` of some widths than `base`."""
        smaller = replace(base, **{name: getattr(base, name) - number for name, number in fewer.items()})
        rest = self.all_layers(base)[1:]
        return self.decoder((base, *rest)) - self.decoder((smaller, *rest))

    def of_layer_0(self) -> int:
        """All parameters of the first decoder layer, norms included."""
        inside = next(m.parameter for g in self.groups if g.layer == 0 for m in g.members)
        prefix = re.match(r".*?\.0\.", inside)[0]
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith(prefix))


def parse_parameters(text: str) -> int:
    """`1.2B`, `350M`, `6500k` or a plain number. UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbBgG]?)", text.strip().replace("_", "").replace(",", ""))
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[match[2].lower()] if match else 0
    if not 0.5 < number < MOST:
        raise UsageError(f"target_params: {shown(text)} is not a number of parameters; write 1.2B, 350M or 6500000")
    return round(number)


def parse_bytes(text: str) -> int:
    """`8GB`, `1.5GiB`, `500MB` or a plain number of bytes. UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", text.strip().lower().replace("_", ""))
    if match and match[2]:
        number = float(match[1]) * (1024 if match[3] else 1000) ** ("kmgt".index(match[2]) + 1)
    else:
        number = float(match[1]) if match else 0
    if not 1 <= number < MOST:
        raise UsageError(f"target_memory: {shown(text)} is not a size; write 8GB, 1.5GiB or 500MB")
    return int(number)


def goal_of(options, element_size: int) -> int | None:
    """The parameters of the whole model that `options` ask for, or None where they ask for something else."""
    if options.target_params is not None:
        return parse_parameters(options.target_params)
    return None if options.target_memory is None else parse_bytes(options.target_memory) // element_size


@dataclass(frozen=True)
class Budget:
    """goal: the parameters that should be left: of the whole model, or (not `whole`) of attention and MLP."""

    goal: float
    whole: bool

    def count(self, ledger: Ledger, after: Layers) -> float:
        return ledger.total(after) if self.whole else ledger.decoder(after)

    def missed(self, ledger: Ledger, after: Layers) -> float:
        """How far from the budget the model is: as a share of the goal or, not `whole`, of what there was."""
        base = self.goal if self.whole else self.count(ledger, ledger.all_layers(ledger.before))
        return abs(self.count(ledger, after) - self.goal) / max(base, 1)

    def check(self, ledger: Ledger, after: Layers, kinds: Iterable[str]) -> None:
        """PlanError, with what the nearest shape is, when `after`, the nearest, misses the budget by more than
        TOLERANCE."""
        if self.missed(ledger, after) <= TOLERANCE:
            return
        found, what = self.count(ledger, after), ", ".join(sorted(kinds))
        if self.whole:
            raise PlanError(
                f"{what} cannot meet the budget: {self.goal:,} parameters are wanted, the nearest is {found:,}; "
                "ask for that, or let --prune name more"
            )
        full = self.count(ledger, ledger.all_layers(ledger.before))
        raise PlanError(
            f"{what} cannot meet the budget: {1 - self.goal / full:.4f} of the attention and MLP parameters should go, "
            f"the nearest is {1 - found / full:.4f}; ask for that, or let --prune name more"
        )


def share_of(ledger: Ledger, options, goal: int | None = None) -> float:
    """The share of the attention and MLP parameters that `options` want removed; more than 1 where `goal`, of the whole
    model, is less than the rest of it. PlanError for a goal that is not less than the model."""
    full = ledger.all_layers(ledger.before)
    decoder = ledger.decoder(full)
    if goal is not None:
        total, name = ledger.total(full), "target_params" if options.target_params else "target_memory"
        if goal >= total:
            raise PlanError(f"{name} {getattr(options, name)}: the model has {total:,} parameters; ask for fewer")
        share = (total - goal) / decoder
    elif options.iteration is not None:
        share = options.iteration * ledger.of_layer_0() / decoder
    else:
        share = options.param_ratio if options.param_ratio is not None else options.pruning_ratio
    return share


def widths_by_parameters(
    ledger: Ledger, kinds: Iterable[str], goal: float, whole: bool, legal: Callable[[Widths], bool]
) -> Widths:
    """The widths at which attention and MLP, or the `whole` model, have `goal` parameters.

    Every kind shrinks by one ratio to the nearest `legal` shape, whole query heads in every group, then neurons fill
    what rounding left, by their true cost. PlanError when no shape is legal, or when the nearest misses the goal by
    more than TOLERANCE.
    """
    before, kinds, budget = ledger.before, set(kinds), Budget(goal, whole)
    count = ledger.total if whole else ledger.decoder
    least = smallest(before, kinds)
    too_small = goal < count(ledger.all_layers(least))  # then the first legal shape is the nearest
    best = None
    for shape in chain([least] * too_small, _shapes(before, kinds, _ratio(ledger, kinds, goal, count))):
        if not legal(shape):
            continue
        if MLP in kinds:
            fewer = replace(shape, intermediate_size=shape.intermediate_size - 1)
            one = count(ledger.all_layers(shape)) - count(ledger.all_layers(fewer))
            neurons = shape.intermediate_size + round((goal - count(ledger.all_layers(shape))) / one)
            shape = replace(shape, intermediate_size=min(max(1, neurons), before.intermediate_size))
        missed = budget.missed(ledger, ledger.all_layers(shape))
        if best is None or missed < best[0]:
            best = missed, shape
        if missed <= TOLERANCE or too_small:
            break
    if best is None:
        raise PlanError(f"no class holds a shape with fewer {', '.join(sorted(kinds))} and all else as it is")
    budget.check(ledger, ledger.all_layers(best[1]), kinds)
    return best[1]


def smallest(before: Widths, kinds: Iterable[str]) -> Widths:
    """One unit of each kind stays, of heads one in every kv group that does."""
    kinds = set(kinds)
    kv_heads = 1 if KV_HEADS in kinds or HEADS in kinds and not before.grouped else before.num_key_value_heads
    return replace(
        before,
        hidden_size=1 if HIDDEN in kinds else before.hidden_size,
        num_attention_heads=kv_heads * (1 if HEADS in kinds else before.heads_per_group),
        num_key_value_heads=kv_heads,
        intermediate_size=1 if MLP in kinds else before.intermediate_size,
    )


def _ratio(ledger: Ledger, kinds: set[str], goal: float, count) -> float:
    """The ratio by which every kind would shrink if widths could be fractions."""
    low, high = 0.0, 1.0
    for _ in range(50):
        ratio = (low + high) / 2
        widths = {FIELD[kind]: getattr(ledger.before, FIELD[kind]) * (1 - ratio) for kind in kinds}
        if KV_HEADS in kinds and ledger.before.grouped or HEADS in kinds and not ledger.before.grouped:
            for kind in (HEADS, KV_HEADS):
                widths[FIELD[kind]] = getattr(ledger.before, FIELD[kind]) * (1 - ratio)
        if count(ledger.all_layers(replace(ledger.before, **widths))) > goal:
            low = ratio
        else:
            high = ratio
    return (low + high) / 2


def _shapes(before: Widths, kinds: set[str], ratio: float) -> Iterator[Widths]:
    """Shapes around `ratio`: heads rounded ever further, and for each number of heads so the hidden channels. Where
    whole kv groups go, query heads inside them only go when nothing else is left."""
    of_kv = not before.grouped or KV_HEADS in kinds
    inside = range(before.heads_per_group, 0, -1) if of_kv and HEADS in kinds else [before.heads_per_group]
    mlp = before.intermediate_size
    mlp = max(1, mlp - round(ratio * mlp)) if MLP in kinds else mlp
    units = before.num_key_value_heads if of_kv else before.heads_per_group
    for per_group in inside:
        for fewer in _around(round(ratio * units), units) if HEADS in kinds or KV_HEADS in kinds else (0,):
            kv_heads = before.num_key_value_heads - (fewer if of_kv else 0)
            heads = kv_heads * (per_group - (0 if of_kv else fewer))
            hidden = round(ratio * before.hidden_size) if HIDDEN in kinds else 0
            near = _around(hidden, before.hidden_size) if HIDDEN in kinds else (0,)
            for narrower in islice(near, 2 * before.head_dim):
                yield Widths(before.hidden_size - narrower, heads, kv_heads, mlp, before.head_dim)


def _around(wanted: int, units: int) -> Iterator[int]:
    """How many of `units` may go, those nearest to `wanted` first."""
    for distance in range(units + 1):
        if 0 <= wanted - distance < units:
            yield wanted - distance
        if distance and wanted + distance < units:
            yield wanted + distance


def widths_by_iteration(ledger: Ledger, iteration: int) -> Widths:
    """AMP's: as many parameters as `iteration` whole layers, ρ' = iteration·params(layer 0)/(attention + MLP).

    Removed per layer: round(ρ'·heads) heads, at most all but one, with the rounding error made up in neurons:
    round(ρ'·heads − heads removed + ρ'·intermediate). With grouped queries the same in every group.
    https://arxiv.org/abs/2504.21174
    """
    before = ledger.before
    share = iteration * ledger.of_layer_0() / ledger.decoder(ledger.all_layers(before))
    if not share < 1:
        raise PlanError(f"iteration {iteration} leaves nothing of {ledger.num_layers} layers; ask for fewer")
    groups = before.num_key_value_heads if before.grouped else 1
    of_each = before.num_attention_heads // groups
    heads = groups * min(round(share * of_each), of_each - 1)
    neurons = round(share * before.num_attention_heads - heads + share * before.intermediate_size)
    return _fewer(before, heads, neurons)


def widths_by_structure(
    ledger: Ledger, structure: str, share: float, kinds: Iterable[str], remove_heads: int
) -> Widths:
    """FLAP's uniform structures, https://arxiv.org/abs/2312.11983.

    UL-UM: ⌊share·n⌋ heads and neurons go. UL-MM: ⌊remove_heads / layers⌋ heads go in each layer, and neurons until
    the share of the parameters is met. With grouped queries heads go evenly, in every group as many as fit.
    """
    before = ledger.before
    groups = before.num_key_value_heads if before.grouped else 1
    of_each = before.num_attention_heads // groups
    if structure == "UL-UM":
        heads = groups * math.floor(share * of_each + 1e-6) if HEADS in kinds else 0
        return _fewer(before, heads, math.floor(share * before.intermediate_size + 1e-6) if MLP in kinds else 0)
    heads = groups * (remove_heads // ledger.num_layers // groups)
    if remove_heads and not heads:
        raise PlanError(
            f"remove_heads {remove_heads} is not one head of every kv group in each layer; "
            f"the least is {groups * ledger.num_layers}"
        )
    if heads >= before.num_attention_heads:
        raise PlanError(f"remove_heads {remove_heads} leaves no head in {ledger.num_layers} layers; ask for fewer")
    rest = share * ledger.decoder(ledger.all_layers(before)) / ledger.num_layers
    shape = _fewer(before, heads, 0)
    rest -= ledger.cost(before, **{name: getattr(before, name) - getattr(shape, name) for name in FIELD.values()})
    if rest < 0:
        raise PlanError(f"remove_heads {remove_heads} is more than {share:g} of the parameters; ask for fewer")
    return _fewer(before, heads, math.floor(rest / ledger.cost(before, intermediate_size=1) + 1e-6))


def _fewer(before: Widths, heads: int, neurons: int) -> Widths:
    """PlanError when that leaves no neuron."""
    if neurons >= before.intermediate_size:
        raise PlanError(f"{neurons} of {before.intermediate_size} neurons would go; ask for less, or for more heads")
    return replace(
        before,
        num_attention_heads=before.num_attention_heads - heads,
        num_key_value_heads=before.num_key_value_heads - (0 if before.grouped else heads),
        intermediate_size=before.intermediate_size - neurons,
    )
