"""The options of `python -m llm_pruner evaluate`. Imports nothing heavy."""

from dataclasses import asdict, dataclass
from typing import Any

from llm_pruner.config.options import MOST_SEED, check_values, option, resolved
from llm_pruner.errors import UsageError

MODEL, PERPLEXITY, ZERO_SHOT, SPEED, OUTPUT = "models", "perplexity", "zero-shot, by lm_eval", "speed", "output"
USUAL_TASKS = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "boolq")


@dataclass(frozen=True)
class EvaluateOptions:
    """Every option of `evaluate`, by its flag's name."""

    model: tuple[str, ...] | None = option(None, MODEL, "checkpoints to compare: folders, hub ids or `demo`", "DIR")
    dense: str | None = option(None, MODEL, "the model that the others are set against; default: the first of --model")
    dtype: str = option(
        "auto", MODEL, "dtype to load in; auto keeps each checkpoint's",
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip
    device: str = option("auto", MODEL, "cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    device_map: str | None = option(
        None, MODEL, "spread each model over several devices, as in from_pretrained",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
    )  # fmt: skip
    eval_data: tuple[str, ...] | None = option(
        None, PERPLEXITY, "texts to score: wikitext2 (default), demo, text files, or none", "NAME|FILE"
    )
    max_seq_len: int = option(4096, PERPLEXITY, "tokens per window, at most max_position_embeddings", "N", least=2)
    batch_size: int | None = option(
        None, PERPLEXITY, "windows, or questions, per forward pass; default: what fits", "N", least=1
    )
    tasks: tuple[str, ...] | None = option(
        None, ZERO_SHOT, "lm_eval's tasks by name, or YAML files of local ones; `usual`: " + ",".join(USUAL_TASKS),
        "TASK,…",
    )  # fmt: skip
    num_fewshot: int | None = option(None, ZERO_SHOT, "examples in the prompt; default: the task's", "N", least=0)
    apply_chat_template: bool = option(False, ZERO_SHOT, "ask in the tokenizer's chat template")
    limit: int | None = option(None, ZERO_SHOT, "only the first N questions of each task, for a try", "N", least=1)
    speed: bool = option(False, SPEED, "measure prefill and decode tokens/s, time to first token and peak memory")
    speed_batch_size: int = option(1, SPEED, "sequences at a time", "N", least=1)
    prompt_len: int = option(128, SPEED, "tokens of the prompt", "N", least=1)
    new_tokens: int = option(64, SPEED, "tokens to decode after it", "N", least=2)
    repeats: int = option(5, SPEED, "measurements of each model, taken in turns", "N", least=2)
    seed: int = option(0, OUTPUT, "seed of everything random", "N", least=0, most=MOST_SEED)
    report: str | None = option(None, OUTPUT, "write everything as JSON, and an HTML page beside it", "FILE")
    overwrite: bool = option(False, OUTPUT, "replace a report that is there")
    config: str | None = option(None, "options file", "YAML with any of the other options; flags win over it", "FILE")
    traceback: bool = option(False, OUTPUT, "show where an error came from")

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


def resolve(flags: dict[str, Any], yaml_file: str | None = None) -> EvaluateOptions:
    """Defaults < YAML < flags. UsageError for anything that cannot be meant."""
    options = resolved(EvaluateOptions, flags, yaml_file)
    validate(options)
    return options


def validate(options: EvaluateOptions) -> None:
    """UsageError for values out of range and for options that contradict each other."""
    check_values(options)
    if not options.model:
        raise UsageError("no model: give --model DIR [DIR …]")
    if options.device_map and options.device != "auto":
        raise UsageError("device and device_map both say where the model goes; give one of them")
    if "none" in (options.eval_data or ()) and len(options.eval_data) > 1:
        raise UsageError("eval_data: none stands alone")
    if options.eval_data == ("none",) and not options.tasks and not options.speed:
        raise UsageError("nothing to measure: give --eval_data, --tasks or --speed")
    if not options.tasks:
        for name in ("num_fewshot", "apply_chat_template", "limit"):
            if getattr(options, name) not in (None, False):
                raise UsageError(f"{name} is about zero-shot tasks; give --tasks")
