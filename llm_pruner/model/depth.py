"""Fewer layers: what is left of a configuration, a model or a name when whole decoder layers go."""

import copy
import re
from collections.abc import Sequence
from typing import Any

from llm_pruner.model.axes import LAYERS, Layers, Widths
from llm_pruner.model.axes.depth import PER_LAYER
from llm_pruner.model.families import fields_of
from llm_pruner.model.layers import decoder_layers


def shallow_config(config: Any, layers: Sequence[int]) -> Any:
    """Return a copy of `config` for a model of these `layers` only; its lists of one entry per layer are cut alike."""
    shallow = copy.deepcopy(config)
    for name in PER_LAYER:
        if getattr(config, name, None):
            setattr(shallow, name, [getattr(config, name)[layer] for layer in layers])
    for name, value in fields_of(config, {LAYERS: len(layers)}).items():
        setattr(shallow, name, value)
    return shallow


def make_shallow(model: Any, layers: Sequence[int]) -> None:
    """Take all but `layers` out of the model."""
    modules: Any = decoder_layers(model)
    stay = [modules[layer] for layer in layers]
    model.config = model.base_model.config = shallow_config(model.config, layers)
    del modules[len(layers) :]
    for index, module in enumerate(stay):
        modules[index] = module
        for part in module.modules():
            if isinstance(getattr(part, "layer_idx", None), int):
                part.layer_idx = index


def renumbered(name: str, layers: Sequence[int]) -> str | None:
    """Return the name of a parameter or a group when only `layers` are left; None for one in a layer that goes."""
    found = re.match(r"((?:.*?\.)?)(\d+)(\..*)", name)
    if not found:
        return name
    layer = int(found[2])
    return f"{found[1]}{layers.index(layer)}{found[3]}" if layer in layers else None


def at_full_depth(after: Layers, layers: Sequence[int], before: Widths, number: int) -> Layers:
    """Return the widths of all layers of the dense model, of which some go.

    Args:
        after: The widths of the layers that stay.
        layers: The numbers of these.
        before: The widths of the dense model's layers.
        number: How many layers it has.
    """
    widths = [before.common(after[0])] * number
    for layer, own in zip(layers, after, strict=True):
        widths[layer] = own
    return tuple(widths)
