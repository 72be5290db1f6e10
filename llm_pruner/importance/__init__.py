"""How much each unit of a group matters: criteria, one per file, and from their scores to the units that stay."""

from llm_pruner.importance.registry import (
    ABSOLUTE,
    ACTIVATIONS,
    BEST,
    COLUMN,
    CONTRIBUTION,
    GRADIENTS,
    HEAD,
    MOMENTS,
    NEEDS,
    READ,
    UNIT,
    WEIGHTS,
    Calibration,
    Criterion,
    Evidence,
    available,
    criterion,
    get,
    score,
)

__all__ = [
    "ABSOLUTE", "ACTIVATIONS", "BEST", "COLUMN", "CONTRIBUTION", "GRADIENTS", "HEAD", "MOMENTS", "NEEDS", "READ",
    "UNIT", "WEIGHTS", "Calibration", "Criterion", "Evidence", "available", "criterion", "get", "score",
]  # fmt: skip
