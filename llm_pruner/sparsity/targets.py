"""The linear layers that are made sparse, by the part they play in a decoder layer or by a regular expression."""

import re
from collections.abc import Sequence

from torch import nn
from transformers.pytorch_utils import Conv1D

from llm_pruner.config.recipe import TARGETS
from llm_pruner.errors import PlanError
from llm_pruner.model.layers import decoder_layers

# the end of a module's name → the parts that it plays: several where it is fused
PARTS = {
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up",
    "down_proj": "down", "qkv_proj": "q k v", "gate_up_proj": "gate up",
    "attn.c_attn": "q k v", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down",
    "query_key_value": "q k v", "attention.dense": "o", "dense_h_to_4h": "up", "dense_4h_to_h": "down",
}  # fmt: skip


def linear_layers(model) -> dict[str, nn.Module]:
    """Return {name: nn.Linear or Conv1D} of the decoder layers, in their order."""
    layers = decoder_layers(model)
    start = next(name for name, module in model.named_modules() if module is layers)
    return {
        f"{start}.{name}": module
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }  # fmt: skip


def targeted(model, targets: Sequence[str]) -> list[str]:
    """Return the names of the linear layers that targets mean, in the model's order.

    Args:
        model: A causal language model.
        targets: Each one of TARGETS, or else a regular expression that is searched in the names.

    Raises:
        PlanError: A target means nothing in this model, or is a part of a fused projection without its other parts.
    """
    names = list(linear_layers(model))
    parts = {name: parts_of(name) for name in names}
    found: set[str] = set()
    for target in targets:
        if target in TARGETS:
            own = {name for name in names if target in parts[name]}
            for name in own:
                if missing := sorted(parts[name] - set(targets)):
                    together = ", ".join(sorted(parts[name]))
                    raise PlanError(
                        f"{name} computes {together} from one input: target all or none, not without {missing[0]}"
                    )
        else:
            own = {name for name in names if re.search(target, name)}
        # a gated family's `gate` asked of one without gates is no mistake: the default names it
        if not own and not (target in TARGETS and any(parts.values())):
            raise PlanError(
                f"target {target!r} means none of this model's linear layers, such as {', '.join(names[:7])}"
            )
        found |= own
    if not found:
        raise PlanError(f"targets {', '.join(targets)} mean none of this model's linear layers")
    return [name for name in names if name in found]


def parts_of(name: str) -> set[str]:
    """Return the parts that the module of this name plays; none where it is unknown."""
    return next((set(parts.split()) for end, parts in PARTS.items() if f".{name}".endswith(f".{end}")), set())
