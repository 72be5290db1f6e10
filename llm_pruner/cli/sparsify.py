"""`sparsify`: one run, or a sweep of patterns over models."""

from collections.abc import Sequence

from llm_pruner.config.sparsify import SparsifyOptions, validate
from llm_pruner.console import say
from llm_pruner.sparsity.run import run_one
from llm_pruner.sparsity.sweep import sweep


def sparsify_checkpoint(options: SparsifyOptions, argv: Sequence[str] = ()):
    """Do what the options say and return the report. Every failure is a PrunerError with its exit code."""
    validate(options)
    if options.patterns:
        return sweep(options, argv)
    if options.calibration_data and not options.recipe.needs_text:
        say(f"note: {options.recipe.label} measures nothing, so there is nothing to calibrate")
    return run_one(options, argv)
