"""How much each unit of a group matters: criteria, one per file, and from their scores to the units that stay."""

from llm_pruner.importance.criterion import COLUMN, HEAD, OUTPUT_AXES, UNIT, Criterion
from llm_pruner.importance.registry import CRITERIA, criterion_of, score

__all__ = ["COLUMN", "CRITERIA", "HEAD", "OUTPUT_AXES", "UNIT", "Criterion", "criterion_of", "score"]
