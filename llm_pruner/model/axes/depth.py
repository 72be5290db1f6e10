"""The decoder layers themselves."""

from typing import TYPE_CHECKING, Any

from llm_pruner.model.axes.axis import MODEL, Axis

if TYPE_CHECKING:
    from llm_pruner.model.families import Family

PER_LAYER = ("layer_types",)  # fields of a configuration with one entry for each layer


def _write(values: dict[str, Any], number: int, config: Any, family: "Family") -> None:
    values["num_hidden_layers"] = number


LAYERS = Axis("layers", "num_hidden_layers", MODEL, lambda config, family: config.num_hidden_layers, _write)
