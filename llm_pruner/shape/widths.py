"""From ratios and explicit widths to the widths after pruning."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from llm_pruner.config.quantities import check_ratio
from llm_pruner.errors import PlanError, UsageError, did_you_mean, shown
from llm_pruner.model.axes import (
    ATTENTION,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    VOCAB,
    Axis,
    Widths,
    axis_called,
    heads_per_group,
    is_grouped,
    with_heads,
)
from llm_pruner.model.families import family_of, known_axes

NO_TOKENS = "a vocabulary is pruned with its tokenizer, by `prune_checkpoint`; no shape has it"


def parse_prune(text: str, ratio: float | None) -> dict[Axis, float]:
    """Return the ratio of each axis that `text` names.

    Args:
        text: Such as `hidden,heads=0.25`.
        ratio: What an axis without a ratio of its own gets, None for nothing.

    Raises:
        UsageError: A name is unknown or there twice, a ratio is missing or none.
    """
    known = known_axes()
    ratios: dict[Axis, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, own = part.partition("=")
        if name == VOCAB.name:
            raise UsageError(NO_TOKENS)
        axis = axis_called(name, "`prune`", known)
        if axis in ratios:
            raise UsageError(f"`prune` names {name!r} twice")
        if own:
            ratios[axis] = check_ratio(own, f"`prune` {name}")
        elif ratio is None:
            raise UsageError(f"`prune` {name} has no ratio: give `pruning_ratio` or {name}=RATIO")
        else:
            ratios[axis] = ratio
    if not ratios:
        raise UsageError(f"`prune` {text!r} names nothing; choose from {', '.join(axis.name for axis in known)}")
    return ratios


def parse_target(text: str, config: Any) -> dict[Axis, int]:
    """Return the width of each axis that `text` sets.

    Args:
        text: Such as `hidden_size=2048,n_inner=512`; names are the configuration's own or the standard ones.
        config: The model's configuration.

    Raises:
        UsageError: A name is unknown or there twice, or a width is none.
        PlanError: It sets head_dim, which never changes.
    """
    family = family_of(config.model_type)
    names = {axis.field: axis for axis in family.axes} | {axis.field_of(family): axis for axis in family.axes}
    names |= {own: names[standard] for standard, own in config.attribute_map.items() if standard in names}
    target: dict[Axis, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name == VOCAB.field and name not in names:
            raise UsageError(NO_TOKENS)
        if name not in names:
            raise UsageError(f"`target` {name!r}: {did_you_mean(name, names)}")
        number = whole_width(name, value)
        if names[name] in target:
            raise UsageError(f"`target` sets {name} twice")
        target[names[name]] = number
    if HEAD_DIM in target:
        raise PlanError(f"{HEAD_DIM} never changes: RoPE's frequencies depend on it; set {HEADS.field} instead")
    if not target:
        fields = ", ".join(axis.field for axis in family.axes if axis.is_width and axis.prunable)
        raise UsageError(f"`target` {text!r} sets nothing; give NAME=WIDTH of {fields}")
    return target


def whole_width(name: str, value: str) -> int:
    """Return the width that a text sets. UsageError, with the name, where it is none."""
    if not value.isascii() or not value.isdigit() or len(value) > 18 or int(value) < 1:
        raise UsageError(f"`target` {name}: {shown(value)} is not a width; give a whole number of at least 1")
    return int(value)


def widths_by_ratio(before: Widths, ratios: Mapping[Axis, float], derived_head_dim: bool, round_to: int = 1) -> Widths:
    """Return the widths when axes shrink by their ratios: kept = ⌊n(1−r) + 1e-6⌋.

    That is how Torch-Pruning's LLM example counts. Query heads go evenly, and at least one stays in each kv group;
    without groups key and value heads go along. hidden_size and intermediate_size are rounded to the nearest multiple
    of `round_to`. Where head_dim is derived, hidden_size follows the heads.

    Args:
        before: The widths of every layer.
        ratios: {axis: ratio in [0, 1)}.
        derived_head_dim: Whether the class derives head_dim from hidden_size.
        round_to: What the two sizes are a multiple of.

    Raises:
        PlanError: An axis would be empty.
    """
    ratios = dict(ratios)
    if not is_grouped(before) and KV_HEADS in ratios:
        if HEADS in ratios and ratios[HEADS] != ratios[KV_HEADS]:
            raise PlanError("this model has one kv head per query head: heads and kv_heads cannot differ")
        ratios[HEADS] = ratios[KV_HEADS]
    after = _heads_by_ratio(before, ratios)
    for axis in before.prunable:
        if ratios.get(axis) and axis not in ATTENTION:
            step = round_to if axis.is_rounded else 1
            after = after.but({axis: _rounded(_kept(before, axis, ratios[axis]), before[axis], step, axis.field)})
    if derived_head_dim and ratios.get(HIDDEN) and ratios.get(HEADS) == ratios[HIDDEN]:
        step = math.lcm(before[HEAD_DIM], round_to)
        hidden = _rounded(after[HEADS] * before[HEAD_DIM], before[HIDDEN], step, HIDDEN.field)
        after = with_heads(after.but({HIDDEN: hidden}), hidden // before[HEAD_DIM], 1)
    return after


def _heads_by_ratio(before: Widths, ratios: Mapping[Axis, float]) -> Widths:
    kv_heads, per_group = before[KV_HEADS], heads_per_group(before)
    if not is_grouped(before):
        return with_heads(before, _kept(before, HEADS, ratios[HEADS]), 1) if HEADS in ratios else before
    if KV_HEADS in ratios:
        kv_heads = _kept(before, KV_HEADS, ratios[KV_HEADS])
    if HEADS in ratios:
        per_group = max(1, math.floor(per_group * (1 - ratios[HEADS]) + 1e-6))
    return with_heads(before, kv_heads, per_group)


def _kept(before: Widths, axis: Axis, ratio: float) -> int:
    units = before[axis]
    kept = math.floor(units * (1 - ratio) + 1e-6)
    if kept < 1:
        highest = math.floor((1 - 1 / units) * 1e6) / 1e6
        raise PlanError(
            f"ratio {ratio:g} leaves nothing of {axis.field} ({units}); the highest legal ratio is {highest:g}"
        )
    return kept


def _rounded(kept: int, units: int, step: int, field: str) -> int:
    """The multiple of `step` nearest to `kept` that is not more than `units`; a step of 1 changes nothing."""
    nearest = min(math.floor(kept / step + 0.5), units // step) * step
    if nearest < 1:
        raise PlanError(f"{field}={kept} rounds to no multiple of {step} up to {units}; use a smaller `round_to`")
    return nearest


def widths_by_target(before: Widths, target: Mapping[Axis, int]) -> Widths:
    """Return explicit widths; other widths stay, but query heads go with their kv group.

    Args:
        before: The widths of every layer.
        target: {axis: number of units}.

    Raises:
        PlanError: A width is more than the model has, or heads do not go evenly into kv groups.
    """
    kv_heads = before[KV_HEADS]
    if is_grouped(before):
        kv_heads = target.get(KV_HEADS, kv_heads)
        heads = target.get(HEADS, kv_heads * heads_per_group(before))
    else:
        heads = kv_heads = target.get(HEADS, target.get(KV_HEADS, before[HEADS]))
        if target.get(KV_HEADS, kv_heads) != kv_heads:
            raise PlanError("this model has one kv head per query head: set num_attention_heads only, or both alike")
    after = before.but({**target, HEADS: heads, KV_HEADS: kv_heads})
    for axis, width in after.items():
        if width > before[axis]:
            raise PlanError(f"`target` {axis.field}={width} is more than the model has ({before[axis]})")
    if is_grouped(before):
        _check_heads(before, after)
    return after


def _check_heads(before: Widths, after: Widths) -> None:
    heads, kv_heads, most = after[HEADS], after[KV_HEADS], heads_per_group(before)
    if heads % kv_heads:
        low = heads // kv_heads * kv_heads
        nearest = " or ".join(str(n) for n in (low, low + kv_heads) if 0 < n <= before[HEADS])
        raise PlanError(
            f"num_attention_heads={heads} is not a multiple of {kv_heads} kv groups, each of which keeps as many "
            f"query heads; nearest legal: {nearest}"
        )
    if heads // kv_heads > most:
        raise PlanError(
            f"num_attention_heads={heads} with {kv_heads} kv groups is {heads // kv_heads} query heads a group, "
            f"and a group has {most}; at most {kv_heads * most} heads are legal"
        )


def ratio_of_one_step(before: Widths, axes: Iterable[Axis], round_to: int = 1) -> float:
    """Return the smallest ratio, in six digits, that takes one step of an axis.

    A step is a unit, a head of every group, or `round_to` channels.

    Args:
        before: The widths of every layer.
        axes: The axes that shrink.
        round_to: What hidden_size and intermediate_size are a multiple of.
    """

    def smallest(units: int, step: int) -> float:
        lost = next(lost for lost in range(1, units + 1) if _rounded_or_none(units - lost, units, step) != units)
        return lost / units

    ratios = {axis: smallest(before[axis], round_to if axis.is_rounded else 1) for axis in before.prunable}
    ratios[HEADS] = 1 / (heads_per_group(before) if is_grouped(before) else before[HEADS])
    ratios[KV_HEADS] = 1 / before[KV_HEADS]
    return math.floor(min(ratios[axis] for axis in axes) * 1e6) / 1e6


def _rounded_or_none(kept: int, units: int, step: int) -> int | None:
    try:
        return _rounded(kept, units, step, "")
    except PlanError:
        return None
