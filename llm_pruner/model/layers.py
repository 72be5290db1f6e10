"""Where a model has its decoder layers, and what is inside one, by names."""

import re
from typing import Any

from torch import nn


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the model's decoder layers."""
    lists = (child for child in model.base_model.children() if isinstance(child, nn.ModuleList))
    return next(layers for layers in lists if len(layers) == model.config.num_hidden_layers)


def inside(parameter: str) -> str:
    """Return the name inside the layer: `model.layers.3.mlp.up_proj.weight` → `mlp.up_proj.weight`."""
    return re.sub(r"^.*?\.\d+\.", "", parameter, count=1)


def layer_number(parameter: str) -> int | None:
    """Return the number of the layer: `model.layers.3.mlp.up_proj.weight` → 3; None outside the decoder layers."""
    found = re.match(r"^.*?\.(\d+)\.", parameter)
    return int(found[1]) if found else None
