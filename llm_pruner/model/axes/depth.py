"""The decoder layers themselves."""

from llm_pruner.model.axes.axis import MODEL, Axis

PER_LAYER = ("layer_types",)  # fields of a configuration with one entry for each layer


def _write(values, number, config, family) -> None:
    values["num_hidden_layers"] = number


LAYERS = Axis("layers", "num_hidden_layers", MODEL, lambda config, family: config.num_hidden_layers, _write)
