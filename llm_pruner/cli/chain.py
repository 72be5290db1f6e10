"""Pruning and, with `--recover`, the recovery of what it saved: one command, two checkpoints."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_pruner.cli import prune
from llm_pruner.cli.commands import RECOVER
from llm_pruner.cli.requests import validate
from llm_pruner.cli.stages import Stage, in_order
from llm_pruner.config import recover as recovery
from llm_pruner.config.prune import PROGRAM, PruneOptions
from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import UsageError
from llm_pruner.model import loading
from llm_pruner.output.places import check_folder, check_outputs, inputs_of
from llm_pruner.output.reports import PruneReport
from llm_pruner.recovery.adapters import check_installed
from llm_pruner.shape.plan import Plan

RECOVERED = "-recovered"


def prune_checkpoint(options: PruneOptions, argv: Sequence[str] = ()) -> PruneReport | Plan:
    """Prune a checkpoint; with `recover`, as a pipeline of two stages, train the result too.

    Args:
        options: What to do.
        argv: The arguments of the command as they were typed, for the report.

    Returns:
        The report, with that of the recovery as `recovered`; of a dry run the plan.

    Raises:
        PrunerError: Whatever fails, with its exit code.
    """
    if not options.recover:
        return prune.run(options, argv)
    validate(options)
    source = loading.resolve(options.model)
    target = check_outputs(options, source)
    assert target, "validate() refuses `recover` beside `no_save`"
    after = recovery_options(options, target)
    assert after.save_model, "recovery_options names the folder"
    check_folder(Path(after.save_model), inputs_of(options, {"model": source}), after.overwrite)
    if "lora" in (after.train_weights, after.method):
        check_installed()
    pruned, recovered = in_order(
        [
            Stage("prune", lambda: prune.run(options, argv)),
            Stage("recover", lambda: RECOVER.function()(after, argv, PROGRAM)),
        ]
    )
    return replace(pruned.report, recovered=recovered.report)


def recovery_options(options: PruneOptions, target: Path) -> RecoverOptions:
    """Return what `--recover` asks for. UsageError when it is neither a method nor a YAML of recovery options."""
    how, flags = options.recover, _shared(options, target)
    assert how, "there is something to recover"
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
    if options.device.partition(":")[0] in ("cpu", "cuda"):
        flags["device"] = options.device
    return flags
