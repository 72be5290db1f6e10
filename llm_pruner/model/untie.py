"""An lm_head that shares no weight with the embeddings any more: free to be fitted, and paid for."""

import copy
from typing import Any

from llm_pruner.model.skeleton import skeleton
from llm_pruner.model.surgery import finish, place


def is_tied(model: Any) -> bool:
    """Return whether lm_head shares its weight with the embeddings."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def untied_config(config: Any) -> Any:
    """Return a copy of a configuration without the tie."""
    config = copy.deepcopy(config)
    config.tie_word_embeddings = False
    return config


def untied(model: Any) -> Any:
    """Return a tied model with an lm_head of its own; it shares all other tensors with the model."""
    config = untied_config(model.config)
    config._attn_implementation = model.config._attn_implementation
    new, names = skeleton(config), dict(model.named_parameters())
    for name, parameter in model.named_parameters(remove_duplicate=False):
        own = parameter is model.get_output_embeddings().weight and name not in names
        place(new, name, parameter.data.clone() if own else parameter.data, parameter.requires_grad)
    return finish(new, model)
