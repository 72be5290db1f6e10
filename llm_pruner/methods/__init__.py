"""Pruning methods, one per file: from a model and a draft to the pruned model. A third one is one more file."""

from llm_pruner.methods.method import METHODS, Journal, Method, Pruned
from llm_pruner.methods.reconstruct import Reconstruct
from llm_pruner.methods.score_and_cut import Measured, ScoreAndCut

__all__ = ["METHODS", "Journal", "Measured", "Method", "Pruned", "Reconstruct", "ScoreAndCut", "settled"]


def settled(method: Method, is_copy: bool) -> Method:
    """Return what makes a copy where nothing changes: no reconstruction and no compensation; else the method."""
    if not is_copy:
        return method
    if isinstance(method, ScoreAndCut):
        return method.without_compensation()
    return ScoreAndCut(seed=method.seed)
