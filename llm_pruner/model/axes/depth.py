"""The decoder layers themselves."""

from llm_pruner.config.limits import MOST_LAYERS
from llm_pruner.model.axes.axis import DEPTH, Axis

# fields of a configuration with one entry for each layer
PER_LAYER = ("layer_types",)

LAYERS = Axis("layers", "num_hidden_layers", DEPTH, most=MOST_LAYERS, also=("n_layer",))
