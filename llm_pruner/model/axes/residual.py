"""The channels of the residual stream, which run through the whole model."""

from llm_pruner.model.axes.axis import MODEL, Axis


def _write(values, number, config, family) -> None:
    values["hidden_size"] = number


HIDDEN = Axis("hidden", "hidden_size", MODEL, lambda config, family: config.hidden_size, _write)
