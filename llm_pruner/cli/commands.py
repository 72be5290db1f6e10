"""The commands, as data: their options, and where the function is that does them. Imports nothing heavy."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from llm_pruner.cli import requests, stages
from llm_pruner.config import evaluate, pipeline, prune, recover, sparsify
from llm_pruner.config.evaluate import EvaluateOptions
from llm_pruner.config.pipeline import PipelineOptions
from llm_pruner.config.prune import PruneOptions
from llm_pruner.config.recover import RecoverOptions
from llm_pruner.config.sparsify import SparsifyOptions

CODES = "exit codes: 0 ok, 1 failed, 2 usage, 3 unsupported or illegal shape, 4 verification failed, 130 interrupted"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        options: The dataclass whose fields are the flags.
        resolve: Makes one from flags and a YAML file.
        run: "module:function", called with the options and the arguments as they were typed.
    """

    prog: str
    description: str
    examples: tuple[str, ...]
    options: type
    resolve: Callable[[dict[str, Any], str | None], Any]
    run: str

    def function(self) -> Callable[..., Any]:
        """Return the function that does it, imported now: what one command needs is slow, and no other needs it."""
        module, _, name = self.run.partition(":")
        return getattr(import_module(module), name)


PRUNE = Command(
    prune.PROGRAM,
    "Prune the structure of a Hugging Face language model, save an ordinary checkpoint, score it.",
    (
        "--model demo --pruning_ratio 0.5",
        "--model meta-llama/Llama-3.1-8B --pruning_ratio 0.5 --dry_run",
        "--model ./my-model --prune heads=0.25,mlp=0.5 --eval_data test.txt --save_model pruned/mine",
        "--model ./my-model --target hidden_size=2048,intermediate_size=10825",
        "--config configs/magnitude.yaml --model ./my-model",
    ),
    PruneOptions,
    requests.resolve,
    "llm_pruner.cli.chain:prune_checkpoint",
)
RECOVER = Command(
    recover.PROGRAM,
    "Train a pruned checkpoint for a while, by distillation from the dense model or by LoRA.",
    (
        "--model pruned/demo-r0.50",
        "--model pruned/mine --teacher ./my-model --data train.txt --eval_data test.txt --max_minutes 3",
        "--config configs/recover/lora_alpaca.yaml --model pruned/mine",
    ),
    RecoverOptions,
    recover.resolve,
    "llm_pruner.recovery.run:recover",
)
EVALUATE = Command(
    evaluate.PROGRAM,
    "Compare the perplexity, zero-shot tasks and speed of several checkpoints.",
    (
        "--model ./my-model pruned/mine --eval_data test.txt --speed --report evaluation.json",
        "--model pruned/mine --tasks piqa,hellaswag,arc_easy --batch_size 8",
    ),
    EvaluateOptions,
    evaluate.resolve,
    "llm_pruner.evaluation.run:evaluate",
)
PIPELINE = Command(
    pipeline.PROGRAM,
    "Prune, recover and evaluate as one YAML file says; finished stages are skipped.",
    ("--config configs/pipeline_amp.yaml --model meta-llama/Llama-3.1-8B --folder runs/amp",),
    PipelineOptions,
    stages.resolve,
    "llm_pruner.cli.pipeline:run",
)
SPARSIFY = Command(
    sparsify.PROGRAM,
    "Make activations or weights of a dense model sparse, n:m or by a ratio, then score and save it.",
    (
        "--config configs/sparse/act_8_16.yaml --model ./my-model --eval_data test.txt",
        "--model ./my-model --n 8 --m 16 --transform learnable --calibration_data train.txt --save_model sparse/mine",
        "--config configs/sparse/sweep.yaml --model ./my-model ./other --folder runs/sparse",
    ),
    SparsifyOptions,
    sparsify.resolve,
    "llm_pruner.cli.sparsify:sparsify_checkpoint",
)
COMMANDS = {"prune": PRUNE, "recover": RECOVER, "evaluate": EVALUATE, "pipeline": PIPELINE, "sparsify": SPARSIFY}
