"""Prune a model in memory by the magnitude of its groups, without text and without files.

It shows a request (half of every width), a method (score and cut), the plan that comes back, and that the result is a
model of transformers like any other.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM

import llm_pruner

DEMO = Path(llm_pruner.__file__).parent / "model" / "demo" / "model"

model = AutoModelForCausalLM.from_pretrained(DEMO)
before = model.num_parameters()
pruned, plan = llm_pruner.prune(model, llm_pruner.Ratio(0.5), llm_pruner.ScoreAndCut("magnitude"))

print(plan.table())
print(f"parameters: {before:,} before, {pruned.num_parameters():,} after")
