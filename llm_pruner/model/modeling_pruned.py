"""Causal language models whose decoder layers have different widths.

Load one with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`. Each is a model of
transformers, unchanged but for two fields of its config.json:

per_layer_widths: one mapping {config field: width} per decoder layer; an empty one is as the config says, and
`skip: ["attention"]` or `skip: ["mlp"]` in it is a layer without that part, whose norm stays.
projection_biases: modules of a decoder layer, such as "mlp.down_proj", that have a bias in every layer.

`PrunedLlamaConfig` and `PrunedLlamaForCausalLM` are `LlamaConfig` and `LlamaForCausalLM` with these, and so on:
the names are "Pruned" and the name of a class of transformers.
"""

from functools import cache
from typing import Any

import torch
import transformers
from torch import nn

# what the classes of transformers call the parts of a layer that it may lack
PARTS = {"attention": ("self_attn", "attention", "attn", "self_attention"), "mlp": ("mlp", "feed_forward")}


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


# Its name has no "Attention" in it, by which transformers would take this file for one with attentions of its own.
class NoHeads(nn.Module):
    """In place of an attention that was removed: it adds nothing to the hidden states.

    It writes one zero for each token to its layer of the cache, because transformers reads from a cache's first layer
    how many tokens there have been.
    """

    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states, *_, past_key_values=None, layer_past=None, **__):  # noqa: D102
        cache = layer_past if past_key_values is None else past_key_values
        if cache is not None:
            passed = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(passed, passed, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoNeurons(nn.Module):
    """In place of an MLP that was removed: it adds nothing to the hidden states."""

    def forward(self, hidden_states):  # noqa: D102
        return torch.zeros_like(hidden_states)


def skip(layer, part, layer_idx):
    """Takes the attention or the MLP out of a decoder layer, and returns its name."""
    name = next((own for own in PARTS[part] if isinstance(getattr(layer, own, None), nn.Module)), None)
    if name is None:
        raise ValueError(f"{type(layer).__name__} has no {part} by a name that is known: {', '.join(PARTS[part])}")
    setattr(layer, name, NoHeads(layer_idx) if part == "attention" else NoNeurons())
    return name


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
            skipped = [skip(layers[index], part, index) for part in widths.get("skip", ())]
            for name in config.projection_biases:
                if name.partition(".")[0] in skipped:
                    continue
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
