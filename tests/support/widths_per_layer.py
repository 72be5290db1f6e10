"""Tiny models whose layers differ in width."""

import torch
from transformers import AutoModelForCausalLM

from llm_pruner.model.axes import MLP
from llm_pruner.model.families import family_of
from llm_pruner.model.per_layer import per_layer_config
from tests.support import tiny

BIASED = ("self_attn.o_proj", "mlp.down_proj")
BIASES = {"gpt2": ("attn.c_proj", "mlp.c_proj"), "gpt_neox": ("attention.dense",)}


def stock(case: str):
    """The case with three layers; gpt_neox without the biases that it can do without."""
    changes = {
        "gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "gpt_neox": {"attention_bias": False},
    }
    return tiny.config(case, num_hidden_layers=3, **changes.get(case, {}))


def config(case: str):
    """Another number of heads, another ratio of queries to keys and another MLP in each layer."""
    base = stock(case)
    mlp = MLP.field_of(family_of(base.model_type))
    layers = [{mlp: 44}, {mlp: 100}, {}]
    if case not in tiny.DERIVED:
        layers[0] |= {"num_attention_heads": 6, "num_key_value_heads": 2}
        layers[1] |= {"num_attention_heads": 3, "num_key_value_heads": 3}
    return per_layer_config(base, layers, BIASES.get(case, BIASED))


def skipping(case: str):
    """The first layer has no attention, the second no MLP, the last neither."""
    base = stock(case)
    attention, mlp = {"num_attention_heads": 0, "num_key_value_heads": 0}, {MLP.field_of(family_of(base.model_type)): 0}
    return per_layer_config(base, [attention, mlp, attention | mlp], BIASES.get(case, BIASED))


def model(case: str, made=config):
    return randomised(AutoModelForCausalLM.from_config(made(case)))


@torch.no_grad()
def randomised(model):
    for name, parameter in model.named_parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
        if parameter.dim() == 1 and not name.endswith("bias"):
            parameter += 1
    return model.eval()
