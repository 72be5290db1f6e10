"""What a family of decoders has to declare: a few facts that its graph does not show.

Everything else (which norms, projections and embeddings share the residual stream, which matrices are
the MLP, biases, ties) is found by tracing. To add a family is to add a line here, or an entry point of the group
`llm_pruner.families` in another package.
"""

import contextlib
import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from llm_pruner.errors import PlanError, UsageError
from llm_pruner.model.axes import (
    ATTENTION,
    AXES,
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Axis,
    Widths,
    is_grouped,
    uneven_heads,
)
from llm_pruner.registry import Registry

# The quant_method of a checkpoint with sparse activations: transformers has such layers replaced while it loads.
SPARSE_ACTIVATIONS = "sparse_activations"
# Of the model_type where layers differ in width: an unaware transformers must not take it for a stock one.
PREFIX = "pruned_"


@dataclass(frozen=True)
class Family:
    """What is declared of one `model_type`. Everything else is traced.

    Attributes:
        qkv: Names of the query, key and value projections in the attention module; a single name is a fused one.
        out: Name of the output projection in the attention module.
        qkv_layout: Rows of a fused qkv: `concatenated` [Q; K; V] or `per_head` (q, k, v of head 0, of head 1 …).
        axes: What its models have a number of, in the order in which reports list it.
        fields: {standard name of a configuration's field: the family's own name}, where that differs.
        derived_head_dim: Whether the class computes head_dim as hidden_size / num_attention_heads, whatever the
            configuration says, so that the two can only shrink together.
        norm_offset: The norms multiply by (norm_offset + weight).
        scaled_embedding: Whether embeddings are multiplied by √hidden_size at run time.
        output_biases: The configuration's fields that give the output projections of attention and MLP a bias; None
            where the class cannot have both.
        post_norms: Whether norms stand between the output projections and the residual stream.
        relabel: A model_type that computes the same and accepts shapes that this one's configuration refuses, with the
            values that make it the same.
        relabel_unless: Fields of the configuration that must be falsy for that.
    """

    qkv: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    out: str = "o_proj"
    qkv_layout: str = "separate"
    axes: tuple[Axis, ...] = AXES
    fields: Mapping[str, str] = field(default_factory=dict)
    derived_head_dim: bool = False
    norm_offset: float = 0.0
    scaled_embedding: bool = False
    output_biases: tuple[str, ...] | None = None
    post_norms: bool = False
    relabel: tuple[str, dict] | None = None
    relabel_unless: tuple[str, ...] = ()


_BUILTIN: dict[str, Family] = {
    "llama": Family(
        output_biases=("attention_bias", "mlp_bias"),
        relabel=("mistral", {"sliding_window": None}), relabel_unless=("attention_bias", "mlp_bias"),
    ),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "phi3": Family(qkv=("qkv_proj",), qkv_layout="concatenated"),
    "gemma": Family(norm_offset=1.0, scaled_embedding=True),
    "gemma3_text": Family(norm_offset=1.0, scaled_embedding=True, post_norms=True),
    "gpt2": Family(
        qkv=("c_attn",), out="c_proj", qkv_layout="concatenated", fields={"intermediate_size": "n_inner"},
        derived_head_dim=True, output_biases=(),
    ),
    "gpt_neox": Family(
        qkv=("query_key_value",), out="dense", qkv_layout="per_head", derived_head_dim=True,
        output_biases=("attention_bias",),
    ),
}  # fmt: skip
FAMILIES = Registry("llm_pruner.families", "family", _BUILTIN)


def family_of(model_type: str | None) -> Family:
    """Return the declaration of a `model_type`.

    Raises:
        PlanError: There is none; the message lists those that are known.
    """
    if str(model_type).startswith(PREFIX):
        raise PlanError(f"{model_type} has been pruned, and its layers differ in width; prune the original model again")
    if model_type is None or model_type not in FAMILIES:
        raise PlanError(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES.get(model_type)


def stock_type(model_type: Any) -> str:
    """Return the model_type that a checkpoint had before its layers differed in width."""
    return str(model_type).removeprefix(PREFIX)


def axes_of(model_type: Any) -> tuple[Axis, ...]:
    """Return the axes of a `model_type`; the usual ones of one that is not known."""
    return FAMILIES.get(model_type).axes if isinstance(model_type, str) and model_type in FAMILIES else AXES


def known_axes() -> tuple[Axis, ...]:
    """Return the axes of all families that pruning may change, the usual ones first."""
    found = dict.fromkeys(AXES)
    for model_type in FAMILIES:
        # another package's family that cannot be imported
        with contextlib.suppress(UsageError):
            found |= dict.fromkeys(axes_of(model_type))
    return tuple(axis for axis in found if axis.is_width and axis.prunable)


def widths_of(config: Any) -> Widths:
    """Return the widths of the layers of a configuration of any supported family."""
    family = family_of(config.model_type)
    return Widths({axis: axis.read(config, family) for axis in family.axes if axis.is_width})


def fields_of(config: Any, numbers: Mapping[Axis, int]) -> dict[str, Any]:
    """Return {field of a configuration: value} that give a model these numbers.

    Args:
        config: The configuration as it is.
        numbers: {axis: number}.
    """
    family, values = family_of(stock_type(config.model_type)), dict[str, Any]()
    for axis, number in numbers.items():
        axis.write(values, number, config, family)
    return values


def resize(config: Any, widths: Widths, biases: bool = False) -> Any:
    """Return a copy of a configuration with other widths, in a class that can hold them.

    It is the same class where that accepts the shape; else, where the family has one, the class that computes the same
    without the restriction.

    Args:
        config: The configuration.
        widths: Of every layer.
        biases: Whether the output projections get biases, as far as the class can have them.

    Raises:
        PlanError: Neither class can hold the widths; the message has the nearest legal ones.
    """
    try:
        return _resized(config, widths, biases)
    except ValueError as error:
        reason = " ".join(str(error).split())
    nearest = _nearest_legal(config, widths)
    hint = f"; nearest legal: {nearest}" if nearest else ""
    raise PlanError(f"no stock {config.model_type} class holds {_shape(widths)}: {reason}{hint}")


def _resized(config: Any, widths: Widths, biases: bool = False) -> Any:
    family = family_of(config.model_type)
    if family.derived_head_dim and widths[HIDDEN] != widths[HEADS] * widths[HEAD_DIM]:
        raise ValueError(
            f"{config.model_type} derives head_dim from hidden_size / num_attention_heads, and head_dim "
            f"({widths[HEAD_DIM]}) cannot change, so hidden and heads shrink together"
        )
    if reason := uneven_heads(widths):
        raise ValueError(reason)
    values = config.to_dict()
    # the result is a stock class, whatever code the original came with
    values.pop("auto_map", None)
    values |= fields_of(config, widths)
    # gpt2's n_embd, n_head
    for standard, own in config.attribute_map.items():
        if standard in values and own in values:
            values[own] = values.pop(standard)
    if biases:
        values.update(dict.fromkeys(family.output_biases or (), True))
    try:
        return _build(type(config), values)
    except ValueError:
        if family.relabel is None or any(values.get(name) for name in family.relabel_unless):
            raise
    from transformers import AutoConfig

    model_type, changes = family.relabel
    target = type(AutoConfig.for_model(model_type))
    values.update(changes, model_type=model_type)
    for name in (*family.relabel_unless, "pretraining_tp"):
        values.pop(name, None)
    if values.get("architectures"):
        values["architectures"] = [name.replace("Llama", "Mistral") for name in values["architectures"]]
    return _build(target, values)


def _build(config_class: Any, values: dict[str, Any]) -> Any:
    """A validated config, or ValueError: the classes report a refused shape in several ways."""
    try:
        return config_class.from_dict(copy.deepcopy(values))
    except Exception as error:
        causes = str(error.__cause__ or error)
        raise ValueError(causes) from error


def _nearest_legal(config: Any, wanted: Widths) -> str:
    """Return legal shapes next to `wanted`, at most three, never the shape there is.

    Where hidden_size is heads × head_dim they differ by its heads and by its hidden_size; else also by its heads with
    less and with more hidden_size.
    """
    before = widths_of(config)
    group = wanted[KV_HEADS] if is_grouped(before) else 1
    heads = max(1, round(wanted[HEADS] / group)) * group
    searches = []
    if before[HIDDEN] == before[HEADS] * before[HEAD_DIM]:
        fits = wanted[HIDDEN] // wanted[HEAD_DIM] // group * group
        searches = [[(n * wanted[HEAD_DIM], n)] for n in (heads, fits, fits + group)]
    if not family_of(config.model_type).derived_head_dim:
        searches.append([(width, heads) for width in range(wanted[HIDDEN], 0, -1)])
        searches.append([(width, heads) for width in range(wanted[HIDDEN] + 1, before[HIDDEN] + 1)])
    found: list[Widths] = []
    for search in searches:
        for hidden_size, heads in search:
            kv_heads = wanted[KV_HEADS] if is_grouped(before) else heads
            shape = wanted.but({HIDDEN: hidden_size, HEADS: heads, KV_HEADS: kv_heads})
            small = 0 < hidden_size <= before[HIDDEN] and 0 < heads <= before[HEADS]
            if small and shape != before and holds(config, shape):
                found.append(shape)
                break
    return " or ".join(dict.fromkeys(map(_shape, found[:3])))


def holds(config: Any, widths: Widths, biases: bool = False) -> bool:
    """Return whether a stock class holds the shape.

    Args:
        config: The configuration of the model as it is.
        widths: Of every layer.
        biases: Whether the output projections have biases too.
    """
    try:
        _resized(config, widths, biases)
    except ValueError:
        return False
    return True


def _shape(widths: Widths) -> str:
    return ",".join(f"{axis.field}={widths[axis]}" for axis in (HIDDEN, *ATTENTION))
