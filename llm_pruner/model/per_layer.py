"""Layers of different widths: the config that holds them, and transformers told of the classes that build them.

The classes live in modeling_pruned.py, which every such checkpoint carries, so that it loads with
`trust_remote_code=True` where this package is not installed. Where it is imported, it loads as any other.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from llm_pruner.errors import PlanError
from llm_pruner.model.after_import import after_import
from llm_pruner.model.axes import ATTENTION, HEAD_DIM, LAYER, SKIPPED, Axis, Widths, uneven_heads
from llm_pruner.model.families import FAMILIES, PREFIX, family_of, widths_of

AUTO_CONFIG = "transformers.models.auto.configuration_auto"
# the axes of which a layer may have none
SKIPPABLE = frozenset(axis for lacking in SKIPPED.values() for axis in lacking)


def per_layer_config(config: Any, layers: Sequence[Mapping[str, int]], biases: Sequence[str] = ()) -> Any:
    """Return `config` with widths of its own for each decoder layer: {config field: width}, one mapping per layer.

    The fields are those of the axes that may differ between layers, by the family's names; what a mapping leaves out is
    as in `config`. A layer without heads has no attention, and one without neurons no MLP: its widths in the result are
    then `skip: [attention]` or `skip: [mlp]`, as transformers' own `per_layer_config` says it. `biases` names modules
    of a decoder layer, such as "mlp.down_proj", that get a bias in every layer where the stock class has none. `config`
    is not changed.

    PlanError when the family is not supported or its layers cannot have these widths.
    """
    family = family_of(config.model_type)
    if len(layers) != config.num_hidden_layers:
        raise PlanError(f"widths of {len(layers)} layers for a model that has {config.num_hidden_layers}")
    before = widths_of(config)
    overrides = [_overrides(config.model_type, before, index, widths) for index, widths in enumerate(layers)]

    config_class, model_class = classes(config.model_type)
    values = config.to_dict()
    values.pop("model_type")
    if not family.derived_head_dim:
        # or a class that derives it would do so from each layer's own heads
        values["head_dim"] = before[HEAD_DIM]
    values["per_layer_widths"] = overrides
    values["projection_biases"] = list(dict.fromkeys(biases))
    values["architectures"] = [model_class.__name__]
    # saving a model writes the file and this; here for who saves the config alone
    values["auto_map"] = {
        cls._auto_class: f"{cls.__module__.split('.')[-1]}.{cls.__name__}" for cls in (config_class, model_class)
    }
    result = config_class.from_dict(values)
    # not part of to_dict
    result._attn_implementation = config._attn_implementation
    return result


def _overrides(model_type: str, before: Widths, index: int, widths: Mapping[str, int]) -> dict[str, Any]:
    """The widths of layer `index` that differ from `before`. PlanError when no layer can have them."""
    family = family_of(model_type)
    axes = {axis.field_of(family): axis for axis in before.prunable if axis.scope == LAYER}
    for field, width in widths.items():
        if field not in axes:
            raise PlanError(f"layer {index}: {field!r} cannot differ between layers, only {', '.join(axes)}")
        least = 0 if axes[field] in SKIPPABLE else 1
        if type(width) is not int or width < least:
            raise PlanError(f"layer {index}: {field} must be a whole number of at least {least}, not {width!r}")
    own = before.but({axes[field]: width for field, width in widths.items()})
    overrides: dict[str, Any] = {
        field: width for field, width in widths.items() if width and width != before[axes[field]]
    }
    if family.derived_head_dim and any(axes[field] in ATTENTION for field in overrides):
        others = ", ".join(field for field, axis in axes.items() if axis not in ATTENTION)
        raise PlanError(
            f"layer {index}: {model_type} derives head_dim from hidden_size / num_attention_heads, "
            f"so all layers have the same heads; {others} can differ"
        )
    if reason := uneven_heads(own):
        raise PlanError(f"layer {index}: {reason}")
    if skip := [part for part, lacking in SKIPPED.items() if not any(own.get(axis, 1) for axis in lacking)]:
        overrides["skip"] = skip
    return overrides


def lacks(axis: Axis, widths: Mapping[str, Any]) -> bool:
    """Return whether a layer has nothing of an axis.

    Args:
        axis: The axis.
        widths: The layer's entry of `per_layer_widths`.
    """
    return any(axis in SKIPPED.get(part, ()) for part in widths.get("skip", ()))


@cache
def classes(model_type: str) -> tuple[Any, Any]:
    """Return the (config, causal LM) classes with per-layer widths for a stock `model_type`.

    The Auto classes know them from then on.

    Raises:
        PlanError: There are none, as for a family of another package.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM

    from llm_pruner.model import modeling_pruned

    stock_config = CONFIG_MAPPING[model_type]
    config_class = getattr(modeling_pruned, f"Pruned{stock_config.__name__}", None)
    model_class = getattr(modeling_pruned, f"Pruned{MODEL_FOR_CAUSAL_LM_MAPPING[stock_config].__name__}", None)
    if config_class is None or model_class is None:
        raise PlanError(f"no class holds a {model_type} whose layers differ in width; give all layers one width")
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, model_class, exist_ok=True)
    return config_class, model_class


def register() -> None:
    """Make AutoConfig and AutoModelForCausalLM load per-layer checkpoints without `trust_remote_code`.

    Imports nothing: what transformers does not have yet is registered when somebody imports it. Repeatable.
    """
    after_import(AUTO_CONFIG, _register_configs)


def _register_configs(auto_config: Any) -> None:
    for model_type in FAMILIES:
        auto_config.AutoConfig.register(PREFIX + model_type, _deferred(model_type), exist_ok=True)


def _deferred(model_type: str) -> type:
    """Return what stands in for a config class until a config is made.

    To import one now, in the middle of transformers' own imports, would be slow and could go round in a circle.
    """

    class Deferred:
        def __new__(cls, **values: Any) -> Any:
            return classes(model_type)[0](**values)

        @staticmethod
        def from_dict(values: dict[str, Any], **kwargs: Any) -> Any:
            return classes(model_type)[0].from_dict(values, **kwargs)

    return Deferred
