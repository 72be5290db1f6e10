"""Tiny random models of every supported family, with all that makes a family special switched on."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

COMMON = {"vocab_size": 96, "num_hidden_layers": 2, "max_position_embeddings": 64}
SPECIAL_TOKENS = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 0}
GROUPED = {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 80}
LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip

# name of the case → (model_type, what differs from COMMON)
CASES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", {**GROUPED, "head_dim": 8, "rope_parameters": LLAMA3_ROPE}),
    "llama_tied": ("llama", {**GROUPED, "head_dim": 8, "tie_word_embeddings": True}),
    "llama_multi_head": ("llama", {**GROUPED, "num_key_value_heads": 8, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", {**GROUPED, "head_dim": 16, "sliding_window": 7}),
    "qwen2": ("qwen2", {**GROUPED, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {**GROUPED, "head_dim": 16}),
    "phi3": ("phi3", {**GROUPED}),
    "gemma": ("gemma", {**GROUPED, "head_dim": 12}),
    "gemma_untied": ("gemma", {**GROUPED, "head_dim": 12, "tie_word_embeddings": False}),
    "gemma3_text": (
        "gemma3_text",
        {
            **GROUPED, "head_dim": 12, "query_pre_attn_scalar": 16, "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"], "final_logit_softcapping": 3.0,
        },
    ),
    "gpt2": ("gpt2", {"hidden_size": 48, "num_attention_heads": 6}),
    "gpt_neox": ("gpt_neox", {"hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 80}),
}  # fmt: skip
DERIVED = ("gpt2", "gpt_neox")
RMSNORM = tuple(name for name in CASES if name not in DERIVED)

ALL = {"hidden": 0.5, "heads": 0.5, "mlp": 0.5}


def axes(case: str) -> dict[str, dict[str, float]]:
    """{name: ratios} of every axis of a case that can go alone, and of all together."""
    if case in DERIVED:
        return {"hidden+heads": {"hidden": 0.5, "heads": 0.5}, "mlp": {"mlp": 0.3}, "all": ALL}
    single = {"hidden": {"hidden": 1 / 3}, "heads": {"heads": 0.5}, "kv_heads": {"kv_heads": 0.5}, "mlp": {"mlp": 0.3}}
    return {**single, "all": {**ALL, "kv_heads": 0.5}}


def config(case: str, **changes):
    model_type, differs = CASES[case]
    values = {**COMMON, **SPECIAL_TOKENS, **differs, **changes}
    if model_type in DERIVED:
        values.pop("pad_token_id")
    return AutoConfig.for_model(model_type, **values)


def model(case: str, seed: int = 0, dtype=torch.float32, **changes):
    """A model whose every parameter is random, norms and biases too, so that none can be forgotten unnoticed."""
    torch.manual_seed(seed)
    built = AutoModelForCausalLM.from_config(config(case, **changes))
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.dim() == 1:
                centre = 1.0 if "norm" in name or "ln_" in name else 0.0
                offset = 1.0 if case.startswith("gemma") else 0.0  # their norms multiply by 1 + w
                is_bias = name.endswith("bias")
                parameter.copy_(0.2 * torch.randn_like(parameter) + (0.0 if is_bias else centre - offset))
            else:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return built.to(dtype).eval()


def tokens(rows: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(COMMON["vocab_size"], (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(built, input_ids=None) -> torch.Tensor:
    return built(tokens() if input_ids is None else input_ids).logits.float()
