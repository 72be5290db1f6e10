"""Let every linear layer read 8 of every 16 inputs, with and without a channel permutation.

It shows recipes, which change a model in place: plain 8:16 needs no text, and with `permutation` the prompts decide
which channels are neighbours.
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


prompts, scored = list(windows(training(), 16)), windows(held_out(), 32)
dense = llm_pruner.perplexity(AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32), scored)
print(f"dense: perplexity {dense:.3f}")
for permutation in (False, True):
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    llm_pruner.sparsify(model, llm_pruner.Recipe(n=8, m=16, permutation=permutation), prompts)
    name = "8:16 with permutation" if permutation else "8:16"
    print(f"{name}: perplexity {llm_pruner.perplexity(model, scored):.3f}")
