"""Pruning and, with `--recover`, the recovery of what it saved: one command, two checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_pruner.cli import prune
from llm_pruner.cli.requests import validate
from llm_pruner.config import recover as recovery
from llm_pruner.config.prune import PruneOptions
from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import UsageError
from llm_pruner.model import loading
from llm_pruner.output.places import check_folder, check_outputs, inputs_of
from llm_pruner.output.reports import PruneReport
from llm_pruner.shape.plan import Plan

RECOVERED = "-recovered"


def run(options: PruneOptions, argv: Sequence[str] = ()) -> PruneReport | Plan:
    """Prune; with options.recover the report has that of the recovery as `recovered`. Errors as in both."""
    if not options.recover:
        return prune.run(options, argv)
    validate(options)
    source = loading.resolve(options.model)
    target = check_outputs(options, source)
    after = recovery_options(options, target)
    check_folder(Path(after.save_model), inputs_of(options, {"model": source}), after.overwrite)
    if after.train_weights == "lora" or after.method == "lora":
        from llm_pruner.recovery.adapters import check_installed

        check_installed()
    made = prune.run(options, argv)
    from llm_pruner.recovery.run import run as recover

    return replace(made, recovered=recover(after, argv, "python prune_llm.py"))


def recovery_options(options: PruneOptions, target: Path) -> RecoverOptions:
    """What `--recover` asks for. UsageError when it is neither a method nor a YAML of recovery options."""
    how, flags = options.recover, _shared(options, target)
    if how in ("lora", "distil"):
        flags["method"] = how
    elif not Path(how).expanduser().is_file():
        raise UsageError(f"recover: {how!r} is neither distil, lora nor a YAML file of recovery options")
    yaml_file = None if how in ("lora", "distil") else how
    return recovery.resolve(flags, yaml_file)


def _shared(options: PruneOptions, target: Path) -> dict[str, Any]:
    """What a recovery takes over from the pruning it follows."""
    flags = {
        "model": str(target),
        "save_model": f"{target}{RECOVERED}",
        "overwrite": options.overwrite,
        "seed": options.seed,
        "traceback": options.traceback,
    }
    if options.eval_data:
        flags["eval_data"] = options.eval_data
    if options.device in ("cpu", "cuda"):
        flags["device"] = options.device
    return flags
