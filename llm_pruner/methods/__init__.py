"""Pruning methods, one per file: from a model and a draft to the pruned model. A third one is one more file."""

from llm_pruner.methods.method import METHODS, Journal, Method, Pruned
from llm_pruner.methods.reconstruct import Reconstruct
from llm_pruner.methods.score_and_cut import Measured, ScoreAndCut

__all__ = ["METHODS", "Journal", "Measured", "Method", "Pruned", "Reconstruct", "ScoreAndCut", "settled"]


def settled(method: Method, is_copy: bool) -> Method:
    """Return the method for a draft; for one that changes nothing, a method that makes a copy.

    Args:
        method: The method. Of a copy there is no reconstruction and no compensation.
        is_copy: Whether nothing changes.
    """
    if not is_copy:
        return method
    if isinstance(method, ScoreAndCut):
        return method.without_compensation()
    return ScoreAndCut(seed=method.seed)
