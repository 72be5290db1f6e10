"""Causal language models whose decoder layers have different widths.

Load one with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`. Each is a model of
transformers, unchanged but for two fields of its config.json:

per_layer_widths: one mapping {config field: width} per decoder layer; an empty one is as the config says.
projection_biases: modules of a decoder layer, such as "mlp.down_proj", that have a bias in every layer.

`PrunedLlamaConfig` and `PrunedLlamaForCausalLM` are `LlamaConfig` and `LlamaForCausalLM` with these, and so on:
the names are "Pruned" and the name of a class of transformers.
"""

from functools import cache
from typing import Any

import transformers
from torch import nn


class LayerConfig:
    """A model's config as one decoder layer sees it: `widths` are its own, the rest is read from the model's.

    Not a copy: what is set on the model's config later, the attention implementation for one, holds here too,
    and no config class has a say in whether a layer may have these widths.
    """

    def __init__(self, config, widths):
        self.__dict__.update(widths, _config=config)

    def __getattr__(self, name):
        # copy and pickle ask for some before there is a _config
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._config, name)


class PrunedConfig:
    """What a config class gains; `_auto_class` has save_pretrained write this file and point to it."""

    _auto_class = "AutoConfig"
    per_layer_widths = ()
    projection_biases = ()


class PrunedModel:
    """What a causal language model gains: it builds its decoder layers as the config's two fields say."""

    _auto_class = "AutoModelForCausalLM"
    base_model: Any
    post_init: Any

    def __init__(self, config):
        super().__init__(config)  # type: ignore[call-arg]  # of the stock class, which comes behind this one
        layers = next(child for child in self.base_model.children() if isinstance(child, nn.ModuleList))
        for index, (layer, widths) in enumerate(zip(layers, config.per_layer_widths, strict=True)):
            if widths:
                layers[index] = type(layer)(LayerConfig(config, widths), layer_idx=index)
            for name in config.projection_biases:
                projection = layers[index].get_submodule(name)
                if projection.bias is None:
                    projection.bias = nn.Parameter(projection.weight.new_zeros(projection.out_features))
        self.post_init()


@cache
def __getattr__(name):
    base = getattr(transformers, name.removeprefix("Pruned"), None) if name.startswith("Pruned") else None
    if base is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if issubclass(base, transformers.PreTrainedConfig):
        return type(name, (PrunedConfig, base), {"__module__": __name__, "model_type": f"pruned_{base.model_type}"})
    config_class = __getattr__(f"Pruned{base.config_class.__name__}")
    return type(name, (PrunedModel, base), {"__module__": __name__, "config_class": config_class})
