"""Prune a checkpoint on disk, recover it by distillation, and evaluate all three side by side.

It shows that every command is a function of one frozen dataclass whose fields are the command's flags. Everything is
written to `pruned/` in the current folder, reports included.
"""

import llm_pruner

PRUNED, RECOVERED = "pruned/demo", "pruned/demo-recovered"

pruning = llm_pruner.PruneOptions(
    model="demo",
    pruning_ratio=0.5,
    epochs=1,
    nsamples=64,
    eval_data="none",
    save_model=PRUNED,
    overwrite=True,
    dtype="float32",
)
recovery = llm_pruner.RecoverOptions(
    model=PRUNED, nsamples=256, max_minutes=0.25, eval_data="none", save_model=RECOVERED, overwrite=True
)
evaluation = llm_pruner.EvaluateOptions(
    model=("demo", PRUNED, RECOVERED), report="pruned/evaluation.json", dtype="float32", overwrite=True
)

llm_pruner.prune_checkpoint(pruning)
llm_pruner.recover(recovery)
llm_pruner.evaluate(evaluation)
