"""The options of `evaluate`. Imports nothing heavy."""

from typing import Any

from llm_pruner.config.groups import (
    MODEL,
    SPEED,
    EvaluationOptions,
    LoadingOptions,
    ModelOptions,
    ReportOptions,
    RunOptions,
    ZeroShotOptions,
    check_placement,
    check_zero_shot,
)
from llm_pruner.config.options import check_values, command_options, option, resolved
from llm_pruner.errors import UsageError

PROGRAM = "llm-pruner evaluate"


@command_options(
    model={"help": "checkpoints to compare: folders, hub ids or `demo`", "kind": tuple},
    eval_data={"help": "texts to score: wikitext2 (default), demo, text files, or none", "kind": tuple},
    batch_size={"help": "windows or questions per forward pass; default: as many as fit"},
    report={"help": "write all results to FILE as JSON, and an HTML page beside it"},
)
class EvaluateOptions(RunOptions, ReportOptions, ZeroShotOptions, EvaluationOptions, LoadingOptions, ModelOptions):
    """Every option of `evaluate`, by its flag's name."""

    dense: str | None = option(
        None, MODEL, "model that the others are compared with; default: the first of --model", common=True
    )
    speed: bool = option(
        False, SPEED, "measure prefill and decode tokens/s, time to first token and peak memory", kind=bool, common=True
    )
    speed_batch_size: int = option(1, SPEED, "sequences per batch", "N", kind=int, least=1)
    prompt_len: int = option(128, SPEED, "tokens in the prompt", "N", kind=int, least=1)
    new_tokens: int = option(64, SPEED, "tokens to decode after the prompt", "N", kind=int, least=2)
    repeats: int = option(5, SPEED, "measurements of each model, taken in turns", "N", kind=int, least=2)


def resolve(flags: dict[str, Any], yaml_file: str | None = None) -> EvaluateOptions:
    """Return the options: defaults < YAML < flags. UsageError for anything that cannot be meant."""
    options = resolved(EvaluateOptions, flags, yaml_file)
    validate(options)
    return options


def validate(options: EvaluateOptions) -> None:
    """Raise a UsageError for values out of range and for options that contradict each other."""
    check_values(options)
    if not options.model:
        raise UsageError("no model: give `model`")
    check_placement(options)
    check_zero_shot(options)
    if "none" in (options.eval_data or ()) and len(options.eval_data) > 1:
        raise UsageError("eval_data: none stands alone")
    if options.eval_data == ("none",) and not options.tasks and not options.speed:
        raise UsageError("nothing to measure: give `eval_data`, `tasks` or `speed`")
