"""The channels of the residual stream, which run through the whole model."""

from typing import TYPE_CHECKING, Any

from llm_pruner.model.axes.axis import MODEL, Axis

if TYPE_CHECKING:
    from llm_pruner.model.families import Family


def _write(values: dict[str, Any], number: int, config: Any, family: "Family") -> None:
    values["hidden_size"] = number


HIDDEN = Axis("hidden", "hidden_size", MODEL, lambda config, family: config.hidden_size, _write)
