"""The neurons of an MLP."""

from typing import TYPE_CHECKING, Any

from llm_pruner.model.axes.axis import LAYER, Axis

if TYPE_CHECKING:
    from llm_pruner.model.families import Family


def _read(config: Any, family: "Family") -> int:
    return getattr(config, family.intermediate_size) or 4 * config.hidden_size


def _write(values: dict[str, Any], number: int, config: Any, family: "Family") -> None:
    values[family.intermediate_size] = number


MLP = Axis("mlp", "intermediate_size", LAYER, _read, _write)
