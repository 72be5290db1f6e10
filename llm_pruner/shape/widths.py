"""From what was asked (ratios, explicit widths, rounding) to the widths after pruning."""

import math

from llm_pruner.errors import PlanError, UsageError, did_you_mean, shown
from llm_pruner.model.families import Widths, family_of
from llm_pruner.model.groups import (
    FIELD,
    HEADS,
    HIDDEN,
    KINDS,
    KV_HEADS,
    MLP,
)


def parse_prune(text: str, ratio: float | None) -> dict[str, float]:
    """`hidden,heads=0.25` with a ratio for the others → {"hidden": ratio, "heads": 0.25}. UsageError."""
    ratios: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        kind, _, own = part.partition("=")
        if kind not in KINDS:
            raise UsageError(f"--prune {kind!r}: {did_you_mean(kind, KINDS)}")
        if kind in ratios:
            raise UsageError(f"--prune names {kind!r} twice")
        if own:
            ratios[kind] = check_ratio(own, f"--prune {kind}")
        elif ratio is None:
            raise UsageError(f"--prune {kind} has no ratio: give --pruning_ratio or {kind}=RATIO")
        else:
            ratios[kind] = ratio
    if not ratios:
        raise UsageError(f"--prune {text!r} names nothing; choose from {', '.join(KINDS)}")
    return ratios


def check_ratio(value, name: str) -> float:
    """`value` as a ratio, 0 <= ratio < 1. UsageError with the value and the range."""
    try:
        ratio = float(value)
    except (TypeError, ValueError):
        ratio = math.nan
    if not 0 <= ratio < 1:
        raise UsageError(f"{name}: {value!r} is not a ratio; it must be a number with 0 <= ratio < 1, such as 0.5")
    return ratio


def parse_target(text: str, config) -> dict[str, int]:
    """`hidden_size=2048,n_inner=512` → {kind: width}, `layers` for how many of them; names are the config's own or the
    standard ones. UsageError."""
    names = {field: kind for kind, field in FIELD.items()} | {"head_dim": "head_dim", "num_hidden_layers": "layers"}
    names[family_of(config.model_type).intermediate_size] = MLP
    names |= {own: names[standard] for standard, own in config.attribute_map.items() if standard in names}
    target: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if name not in names:
            raise UsageError(f"--target {name!r}: {did_you_mean(name, names)}")
        if not value.isascii() or not value.isdigit() or len(value) > 18 or int(value) < 1:
            raise UsageError(f"--target {name}: {shown(value)} is not a width; give a whole number of at least 1")
        if names[name] in target:
            raise UsageError(f"--target sets {name} twice")
        target[names[name]] = int(value)
    if "head_dim" in target:
        raise PlanError("head_dim never changes: RoPE's frequencies depend on it; set num_attention_heads instead")
    if not target:
        raise UsageError(f"--target {text!r} sets nothing; give NAME=WIDTH of {', '.join(FIELD.values())}")
    return target


def widths_by_ratio(before: Widths, ratios: dict[str, float], derived_head_dim: bool, round_to: int = 1) -> Widths:
    """Each kind in `ratios` shrunk by its ratio: kept = ⌊n(1−r) + 1e-6⌋, as in Torch-Pruning's LLM example.

    Query heads go evenly, at least one stays in each kv group; without groups key and value heads go along.
    hidden_size and intermediate_size are rounded to the nearest multiple of `round_to`. Where head_dim
    is derived, hidden_size follows the heads. PlanError when a group would empty.
    """
    heads, kv_heads = before.num_attention_heads, before.num_key_value_heads
    per_group = before.heads_per_group
    if not before.grouped and KV_HEADS in ratios:
        if HEADS in ratios and ratios[HEADS] != ratios[KV_HEADS]:
            raise PlanError("this model has one kv head per query head: heads and kv_heads cannot differ")
        ratios = {**ratios, HEADS: ratios[KV_HEADS]}
    if before.grouped:
        if KV_HEADS in ratios:
            kv_heads = _kept(kv_heads, ratios[KV_HEADS], FIELD[KV_HEADS])
        if HEADS in ratios:
            per_group = max(1, math.floor(per_group * (1 - ratios[HEADS]) + 1e-6))
        heads = kv_heads * per_group
    elif HEADS in ratios:
        heads = kv_heads = _kept(heads, ratios[HEADS], FIELD[HEADS])
    hidden, intermediate = before.hidden_size, before.intermediate_size
    if ratios.get(HIDDEN):
        hidden = _rounded(_kept(hidden, ratios[HIDDEN], FIELD[HIDDEN]), hidden, round_to, FIELD[HIDDEN])
        if derived_head_dim and ratios.get(HEADS) == ratios[HIDDEN]:
            step = math.lcm(before.head_dim, round_to)
            hidden = _rounded(heads * before.head_dim, before.hidden_size, step, FIELD[HIDDEN])
            heads = kv_heads = hidden // before.head_dim
    if ratios.get(MLP):
        intermediate = _rounded(_kept(intermediate, ratios[MLP], FIELD[MLP]), intermediate, round_to, FIELD[MLP])
    return Widths(hidden, heads, kv_heads, intermediate, before.head_dim)


def _kept(units: int, ratio: float, field: str) -> int:
    kept = math.floor(units * (1 - ratio) + 1e-6)
    if kept < 1:
        highest = math.floor((1 - 1 / units) * 1e6) / 1e6
        raise PlanError(f"ratio {ratio:g} leaves nothing of {field} ({units}); the highest legal ratio is {highest:g}")
    return kept


def _rounded(kept: int, units: int, step: int, field: str) -> int:
    """The multiple of `step` nearest to `kept` that is not more than `units`; a step of 1 changes nothing."""
    nearest = min(math.floor(kept / step + 0.5), units // step) * step
    if nearest < 1:
        raise PlanError(f"{field}={kept} rounds to no multiple of {step} up to {units}; use a smaller --round_to")
    return nearest


def widths_by_target(before: Widths, target: dict[str, int]) -> Widths:
    """Explicit widths; what is not named stays, but heads go with their kv group. PlanError when too wide."""
    heads, kv_heads = before.num_attention_heads, before.num_key_value_heads
    if before.grouped:
        kv_heads = target.get(KV_HEADS, kv_heads)
        heads = target.get(HEADS, kv_heads * before.heads_per_group)
    else:
        heads = kv_heads = target.get(HEADS, target.get(KV_HEADS, heads))
        if target.get(KV_HEADS, kv_heads) != kv_heads:
            raise PlanError("this model has one kv head per query head: set num_attention_heads only, or both alike")
    after = Widths(
        target.get(HIDDEN, before.hidden_size), heads, kv_heads,
        target.get(MLP, before.intermediate_size), before.head_dim,
    )  # fmt: skip
    for field, width in after.asdict().items():
        if width > getattr(before, field):
            raise PlanError(f"--target {field}={width} is more than the model has ({getattr(before, field)})")
    if before.grouped and heads % kv_heads:
        low = heads // kv_heads * kv_heads
        nearest = " or ".join(str(n) for n in (low, low + kv_heads) if 0 < n <= before.num_attention_heads)
        raise PlanError(
            f"num_attention_heads={heads} is not a multiple of {kv_heads} kv groups, each of which keeps as many "
            f"query heads; nearest legal: {nearest}"
        )
    if heads // kv_heads > before.heads_per_group:
        raise PlanError(
            f"num_attention_heads={heads} with {kv_heads} kv groups is {heads // kv_heads} query heads a group, "
            f"and a group has {before.heads_per_group}; at most {kv_heads * before.heads_per_group} heads are legal"
        )
    return after


def ratio_of_one_step(before: Widths, kinds, round_to: int = 1) -> float:
    """The smallest ratio, in six digits, that takes a unit, a head of every group or `round_to` channels of a kind."""

    def smallest(units: int, step: int) -> float:
        lost = next(lost for lost in range(1, units + 1) if _rounded_or_none(units - lost, units, step) != units)
        return lost / units

    ratios = {
        HIDDEN: smallest(before.hidden_size, round_to),
        HEADS: 1 / (before.heads_per_group if before.grouped else before.num_attention_heads),
        KV_HEADS: 1 / before.num_key_value_heads,
        MLP: smallest(before.intermediate_size, round_to),
    }
    return math.floor(min(ratios[kind] for kind in kinds) * 1e6) / 1e6


def _rounded_or_none(kept: int, units: int, step: int) -> int | None:
    try:
        return _rounded(kept, units, step, "")
    except PlanError:
        return None
