"""Models without weights: for shapes, for tracing, and to be filled."""

import copy
from typing import Any


def meta_model(config: Any) -> Any:
    """Return a model of `config` without weights, on the meta device, in the dtype that the config names."""
    import torch
    from transformers import AutoModelForCausalLM

    # a copy: building a model writes its dtype into the config
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=config.dtype or torch.float32)


def skeleton(config: Any) -> Any:
    """Return the model of `config` with real buffers and parameters that take no memory."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(config)
