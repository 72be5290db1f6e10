"""`sparsify`: one run, or a sweep of patterns over models."""

from collections.abc import Sequence

from llm_pruner.config.sparsify import SparsifyOptions, validate
from llm_pruner.console import log
from llm_pruner.sparsity.run import run_one
from llm_pruner.sparsity.sweep import sweep


def sparsify_checkpoint(options: SparsifyOptions, argv: Sequence[str] = ()):
    """Make a checkpoint sparse and score it, or run a sweep of patterns over models.

    Args:
        options: What to do.
        argv: The arguments of the command as they were typed, for the report.

    Returns:
        The report of the run, or of the sweep.

    Raises:
        PrunerError: Whatever fails, with its exit code.
    """
    validate(options)
    if options.patterns:
        return sweep(options, argv)
    if options.calibration_data and not options.recipe.needs_text:
        log(f"note: {options.recipe.label} measures nothing, so there is nothing to calibrate")
    return run_one(options, argv)
