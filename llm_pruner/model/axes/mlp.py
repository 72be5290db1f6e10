"""The neurons of an MLP."""

from llm_pruner.model.axes.axis import LAYER, Axis


def _read(config, family) -> int:
    return getattr(config, family.intermediate_size) or 4 * config.hidden_size


def _write(values, number, config, family) -> None:
    values[family.intermediate_size] = number


MLP = Axis("mlp", "intermediate_size", LAYER, _read, _write)
