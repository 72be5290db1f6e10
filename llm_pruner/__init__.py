"""Structured pruning of Hugging Face language models. Everything public, imported when it is first used."""

from importlib import import_module

from llm_pruner._version import __version__
from llm_pruner.model.per_layer import register as _register_per_layer
from llm_pruner.sparsity.register import register as _register_sparse

_HOME = {
    "Options": "llm_pruner.config.prune",
    "run": "llm_pruner.cli.chain",
    "prune": "llm_pruner.pruning",
    "Ratio": "llm_pruner.shape.request",
    "Target": "llm_pruner.shape.request",
    "Budget": "llm_pruner.shape.request",
    "Replay": "llm_pruner.shape.request",
    "ScoreAndCut": "llm_pruner.methods",
    "Reconstruct": "llm_pruner.methods",
    "trace_groups": "llm_pruner.model.trace",
    "Group": "llm_pruner.model.groups",
    "Member": "llm_pruner.model.groups",
    "Widths": "llm_pruner.model.axes",
    "FAMILIES": "llm_pruner.model.families",
    "Plan": "llm_pruner.shape.plan",
    "cut": "llm_pruner.model.surgery",
    "sparsify_activations": "llm_pruner.sparsity.calibration",
    "sparsify_weights": "llm_pruner.sparsity.weights",
    "Recipe": "llm_pruner.config.recipe",
    "speed_up": "llm_pruner.sparsity.decode",
    "semi_structured": "llm_pruner.sparsity.semi",
    "perplexity": "llm_pruner.evaluation.perplexity",
    "PrunerError": "llm_pruner.errors",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


# Checkpoints with layers of different widths or with sparse activations load like any other, once this is imported.
_register_per_layer()
_register_sparse()
