"""Trace and plan without weights: seconds on one core for the 8B and the 70B shape of Llama 3, and growth with layers.

python benchmarks/tracing.py
"""

import time

import torch
from measure import keep
from transformers import LlamaConfig

from llm_pruner.model.axes import HEADS, HIDDEN, MLP
from llm_pruner.model.families import widths_of
from llm_pruner.model.skeleton import meta_model
from llm_pruner.model.trace import trace_groups
from llm_pruner.shape.plan import make_plan
from llm_pruner.shape.widths import widths_by_ratio

LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_hidden_layers": 32, "vocab_size": 128256,
}  # fmt: skip
LLAMA_70B = {
    **LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64, "num_hidden_layers": 80,
}  # fmt: skip


def seconds(values: dict, repeats: int = 7) -> float:
    """From a configuration to the plan, the best of a few times: CPU seconds of the one thread that works."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        model = meta_model(LlamaConfig(**values))
        groups = trace_groups(model)
        after = widths_by_ratio(widths_of(model.config), {HIDDEN: 0.5, HEADS: 0.5, MLP: 0.5}, False)
        make_plan(model, groups, (after,) * model.config.num_hidden_layers)
        best = min(best, time.process_time() - started)
    return best


def main() -> None:
    torch.set_num_threads(1)
    # imports
    seconds(LLAMA_8B, repeats=1)
    layers = {n: round(seconds({**LLAMA_8B, "num_hidden_layers": n}), 3) for n in (20, 40, 80, 160)}
    keep(
        "tracing",
        {
            "llama_8b_seconds": round(seconds(LLAMA_8B), 3),
            "llama_70b_seconds": round(seconds(LLAMA_70B), 3),
            "seconds_by_layers": layers,
            "ratio_of_160_to_20_layers": round(layers[160] / layers[20], 2),
        },
    )


if __name__ == "__main__":
    main()
