"""The neurons of an MLP."""

from typing import Any

from llm_pruner.model.axes.axis import LAYER, Axis, Declared


def _read(config: Any, family: Declared) -> int:
    return getattr(config, MLP.field_of(family)) or 4 * config.hidden_size


MLP = Axis(
    "mlp", "intermediate_size", LAYER, _read,
    also=("n_inner",), optional=("n_inner",), is_rounded=True, heading="intermediate",
)  # fmt: skip
