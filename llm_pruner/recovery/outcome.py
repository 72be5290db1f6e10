"""The report of a recovery: sizes, perplexities, how much training, and the share of the gap that was closed."""

import math
from collections.abc import Sequence
from typing import Any

from llm_pruner.errors import redact
from llm_pruner.model.size import size_of
from llm_pruner.output import lineage
from llm_pruner.output.reports import Evaluation, Measured, Point, RecoverReport, Sides, Training
from llm_pruner.recovery.settled import Settled
from llm_pruner.recovery.sources import Sources


def outcome(
    found: Sources, settled: Settled, model: Any, scores: dict[str, Any], evaluation: Evaluation | None,
    training: dict[str, Any], tokens: int, history: Sequence[Point], conditions: dict[str, Any],
) -> RecoverReport:  # fmt: skip
    """Return the report.

    Args:
        found: The sources of the run.
        settled: What was done.
        model: The recovered model.
        scores: The fields `perplexity` and `zero_shot`.
        evaluation: The text of the perplexities.
        training: Of `Training`: windows, steps, minutes, processes, precision, trainable_parameters, resumed_at.
        tokens: In all windows.
        history: The points of the training.
        conditions: The fields of `Conditions`.
    """
    accumulated = settled.asked.gradient_accumulation_steps
    per_step = settled.train_batch_size * accumulated * training["processes"]
    seen = training["steps"] * per_step / training["windows"]
    teacher = redact(settled.teacher) if settled.teacher else None
    told = lineage.told(found.report, teacher, evaluation)
    size, model_type = size_of(model), found.config.model_type
    return RecoverReport(
        method=settled.method,
        train_weights=settled.train_weights,
        model=redact(settled.asked.model),
        teacher=teacher,
        model_type=Sides(model_type, model_type),
        parameters=Sides(size.parameters, size.parameters),
        bytes=Sides(size.bytes, size.bytes),
        recovered_share=share(told["dense_perplexity"], scores["perplexity"]),
        evaluation=evaluation,
        training=Training(
            data=redact(settled.data),
            max_seq_len=settled.train_seq_len,
            epochs=seen,
            tokens=round(seen * tokens),
            tokens_per_second=seen * tokens / max(60 * training["minutes"], 1e-9),
            learning_rate=settled.learning_rate,
            batch_size=settled.train_batch_size,
            gradient_accumulation_steps=accumulated,
            **training,
        ),
        history=list(history),
        **scores,
        **told,
        **conditions,
    )


def share(dense: float | None, perplexity: Measured[float]) -> float | None:
    """Return the share of the gap in log-perplexity to the dense model that was closed; None where it is not known.

    Args:
        dense: The dense model's perplexity.
        perplexity: Of the pruned model, before and after.
    """
    before, after = perplexity.before, perplexity.after
    if not dense or not before or not after or not all(map(math.isfinite, (dense, before, after))) or before <= dense:
        return None
    return math.log(before / after) / math.log(before / dense)
