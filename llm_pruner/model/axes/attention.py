"""Query heads, key and value heads, and the width of a head.

With grouped queries, every key and value head serves as many query heads as any other.
"""

from typing import Any

from llm_pruner.model.axes.axis import LAYER, Axis, Declared, Widths

MOST_HEADS = 4096


def _read_kv_heads(config: Any, family: Declared) -> int:
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def _write_kv_heads(values: dict[str, Any], number: int, config: Any, family: Declared) -> None:
    if hasattr(config, "num_key_value_heads"):
        values["num_key_value_heads"] = number


def _read_head_dim(config: Any, family: Declared) -> int:
    own = None if family.derived_head_dim else getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def _write_head_dim(values: dict[str, Any], number: int, config: Any, family: Declared) -> None:
    if not family.derived_head_dim:
        values["head_dim"] = number


HEADS = Axis("heads", "num_attention_heads", LAYER, most=MOST_HEADS, also=("n_head",))
KV_HEADS = Axis(
    "kv_heads",
    "num_key_value_heads",
    LAYER,
    _read_kv_heads,
    _write_kv_heads,
    most=MOST_HEADS,
    optional=("num_key_value_heads",),
)
# It never changes: RoPE's frequencies depend on it.
HEAD_DIM = Axis("head_dim", "head_dim", LAYER, _read_head_dim, _write_head_dim, prunable=False, optional=("head_dim",))
# a head goes with its keys and values, so that the two are one piece of a layer
ATTENTION = (HEADS, KV_HEADS)


def heads_per_group(widths: Widths) -> int:
    """Return how many query heads each key and value head serves; 0 in a layer without attention."""
    return widths[HEADS] // widths[KV_HEADS] if widths[KV_HEADS] else 0


def uneven_heads(widths: Widths) -> str | None:
    """Return what is wrong with the widths where query heads do not go evenly into kv heads."""
    if bool(widths[HEADS]) != bool(widths[KV_HEADS]):
        return f"query heads and kv heads go together ({widths[HEADS]} heads, {widths[KV_HEADS]} kv heads)"
    if not widths[KV_HEADS] or widths[HEADS] % widths[KV_HEADS] == 0:
        return None
    return f"every kv group needs the same number of query heads ({widths[HEADS]} heads, {widths[KV_HEADS]} kv heads)"


def is_grouped(widths: Widths) -> bool:
    """Return whether key and value heads serve several query heads."""
    return widths[KV_HEADS] != widths[HEADS]


def with_heads(widths: Widths, kv_heads: int, per_group: int) -> Widths:
    """Return the widths with `kv_heads` key and value heads that serve `per_group` query heads each."""
    return widths.but({HEADS: kv_heads * per_group, KV_HEADS: kv_heads})
