"""Reconstruct a model with fewer heads and neurons from calibration prompts, and compare it with plain magnitude.

It shows a budget (30 % of the attention and MLP parameters go, from query heads and neurons), the prompts that
reconstruction needs, and the perplexity on other text.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import llm_pruner
from llm_pruner.model.demo.text import held_out, training

DEMO = Path(llm_pruner.__file__).parent / "model" / "demo" / "model"
LENGTH = 128

tokenizer = AutoTokenizer.from_pretrained(DEMO)


def windows(text: str, number: int) -> torch.Tensor:
    """Return the first windows of the text: LongTensor [number, LENGTH]."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"][: number * LENGTH]).view(number, LENGTH)


prompts, scored = list(windows(training(), 32)), windows(held_out(), 32)
budget = llm_pruner.Budget(param_ratio=0.3, axes=("heads", "mlp"))
for name, method in {
    "magnitude": llm_pruner.ScoreAndCut("magnitude"),
    "reconstruct": llm_pruner.Reconstruct(epochs=1, search_minutes=0),
}.items():
    pruned, plan = llm_pruner.prune(
        AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), budget, method, prompts
    )
    print(f"{name}: {pruned.num_parameters():,} parameters, perplexity {llm_pruner.perplexity(pruned, scored):.2f}")
