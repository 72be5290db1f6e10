"""The tracing proxy of a model: a narrow model that is traced in its place.

The same class and the same layers, random weights, on the CPU, a few channels wide, one kv head per query
head, and attention blocks that compute `out(q · k · v)` elementwise: that keeps which channels are coupled
and drops RoPE, masks and softmax.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, MLP, Widths
from llm_pruner.model.families import Family, family_of, fields_of

PROXY = Widths({HIDDEN: 12, HEADS: 3, KV_HEADS: 3, MLP: 10, HEAD_DIM: 4})
VOCABULARY = 7


def build_proxy(config: Any) -> Any:
    """Return a random model of the same class and depth, narrow, with one kv head per query head."""
    config = copy.deepcopy(config)
    axes = family_of(config.model_type).axes
    small = fields_of(config, {axis: number for axis, number in PROXY.items() if axis in axes})
    small.update(vocab_size=VOCABULARY, max_position_embeddings=8, pad_token_id=None, tie_word_embeddings=False)
    if getattr(config, "rope_parameters", None):
        small["rope_parameters"] = _plain_rope(config.rope_parameters)
    for name, value in small.items():
        setattr(config, name, value)
    proxy = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    return proxy.eval()


def _plain_rope(parameters: dict) -> dict:
    """RoPE parameters without the scaling, whose tables have the size of the real heads."""
    if any(isinstance(value, dict) for value in parameters.values()):
        return {kind: _plain_rope(value) for kind, value in parameters.items()}
    return {"rope_type": "default", "rope_theta": parameters.get("rope_theta", 10000.0), "partial_rotary_factor": 1.0}


def replace_attention(proxy: Any, family: Family) -> dict[str, dict[str, nn.Module]]:
    """Return {name of the attention module: {"q": …, "k": …, "v": …, "out": …}}; the modules now compute out(q·k·v)."""
    attention = {}
    for name, module in list(proxy.named_modules()):
        if not all(isinstance(getattr(module, part, None), nn.Module) for part in (*family.qkv, family.out)):
            continue
        if len(family.qkv) == 3:
            parts = {key: getattr(module, part) for key, part in zip("qkv", family.qkv, strict=True)}
        else:
            parts = {key: nn.Linear(PROXY[HIDDEN], PROXY[HIDDEN]) for key in "qkv"}
            for key, linear in parts.items():
                module.add_module(f"traced_{key}", linear)
        if isinstance(getattr(module, family.out), Conv1D):
            conv1d_to_linear(module)
        parts["out"] = getattr(module, family.out)

        def forward(
            hidden_states: torch.Tensor, *_: Any, parts: dict[str, nn.Module] = parts, **__: Any
        ) -> tuple[torch.Tensor, None]:
            product = parts["q"](hidden_states) * parts["k"](hidden_states) * parts["v"](hidden_states)
            return parts["out"](product), None

        module.forward = forward
        attention[name] = parts
    if not attention:
        raise PlanError(f"no attention block with {', '.join((*family.qkv, family.out))} in {type(proxy).__name__}")
    return attention


def conv1d_to_linear(module: nn.Module) -> None:
    """Replace GPT-2's Conv1D, a Linear with a transposed weight, by Linear, in place: torch-pruning knows that."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                setattr(parent, name, nn.Linear(child.nx, child.nf))
