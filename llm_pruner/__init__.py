"""Structured pruning of Hugging Face language models. Everything public, imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING

from llm_pruner._version import __version__
from llm_pruner.model.per_layer import register as _register_per_layer
from llm_pruner.sparsity.register import register as _register_sparse

if TYPE_CHECKING:
    from llm_pruner.calibration.prompts import calibration_prompts
    from llm_pruner.cli.chain import prune_checkpoint
    from llm_pruner.cli.sparsify import sparsify_checkpoint
    from llm_pruner.config.evaluate import EvaluateOptions
    from llm_pruner.config.prune import PruneOptions
    from llm_pruner.config.recipe import Recipe
    from llm_pruner.config.recover import RecoverOptions
    from llm_pruner.config.sparsify import SparsifyOptions
    from llm_pruner.errors import PrunerError
    from llm_pruner.evaluation.perplexity import perplexity
    from llm_pruner.evaluation.run import evaluate
    from llm_pruner.importance import CRITERIA, Criterion
    from llm_pruner.methods import METHODS, Method, Reconstruct, ScoreAndCut
    from llm_pruner.model.axes import Axis, Widths
    from llm_pruner.model.families import FAMILIES, Family
    from llm_pruner.model.groups import Group, Member
    from llm_pruner.model.trace import trace_groups
    from llm_pruner.output.exporters import EXPORTERS
    from llm_pruner.pruning import prune, prune_successively
    from llm_pruner.recovery.losses import LOSSES
    from llm_pruner.recovery.run import recover
    from llm_pruner.shape.plan import Plan
    from llm_pruner.shape.request import Budget, Ratio, Replay, Target
    from llm_pruner.sparsity.decode import speed_up
    from llm_pruner.sparsity.semi import semi_structured
    from llm_pruner.sparsity.sparsify import sparsify

_HOME = {
    "Axis": "model.axes:Axis",
    "Budget": "shape.request:Budget",
    "CRITERIA": "importance:CRITERIA",
    "Criterion": "importance:Criterion",
    "EXPORTERS": "output.exporters:EXPORTERS",
    "EvaluateOptions": "config.evaluate:EvaluateOptions",
    "FAMILIES": "model.families:FAMILIES",
    "Family": "model.families:Family",
    "Group": "model.groups:Group",
    "LOSSES": "recovery.losses:LOSSES",
    "METHODS": "methods:METHODS",
    "Member": "model.groups:Member",
    "Method": "methods:Method",
    "Plan": "shape.plan:Plan",
    "PruneOptions": "config.prune:PruneOptions",
    "PrunerError": "errors:PrunerError",
    "Ratio": "shape.request:Ratio",
    "Recipe": "config.recipe:Recipe",
    "Reconstruct": "methods:Reconstruct",
    "RecoverOptions": "config.recover:RecoverOptions",
    "Replay": "shape.request:Replay",
    "ScoreAndCut": "methods:ScoreAndCut",
    "SparsifyOptions": "config.sparsify:SparsifyOptions",
    "Target": "shape.request:Target",
    "Widths": "model.axes:Widths",
    "calibration_prompts": "calibration.prompts:calibration_prompts",
    "evaluate": "evaluation.run:evaluate",
    "perplexity": "evaluation.perplexity:perplexity",
    "prune": "pruning:prune",
    "prune_checkpoint": "cli.chain:prune_checkpoint",
    "prune_successively": "pruning:prune_successively",
    "recover": "recovery.run:recover",
    "semi_structured": "sparsity.semi:semi_structured",
    "sparsify": "sparsity.sparsify:sparsify",
    "sparsify_checkpoint": "cli.sparsify:sparsify_checkpoint",
    "speed_up": "sparsity.decode:speed_up",
    "trace_groups": "model.trace:trace_groups",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOME[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return __all__


# Checkpoints with layers of different widths or with sparse activations load like any other, once this is imported.
_register_per_layer()
_register_sparse()
