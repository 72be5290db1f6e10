"""The report of a recovery: sizes, perplexities, how much training, and the share of the gap that was closed."""

import math
from collections.abc import Sequence
from typing import Any

from llm_pruner.errors import redact
from llm_pruner.model.size import size_of
from llm_pruner.output import lineage
from llm_pruner.output.reports import Evaluation, Measured, Point, RecoverReport, Sides, Training
from llm_pruner.recovery.sources import Sources


def outcome(
    found: Sources, model: Any, scores: dict[str, Any], evaluation: Evaluation | None, training: dict[str, Any],
    tokens: int, history: Sequence[dict[str, Any]], conditions: dict[str, Any],
) -> RecoverReport:  # fmt: skip
    """Return the report.

    Args:
        found: The sources of the run.
        model: The recovered model.
        scores: The fields `perplexity` and `zero_shot`.
        evaluation: The text of the perplexities.
        training: Of `Training`: windows, steps, minutes, processes, precision, trainable_parameters, resumed_at.
        tokens: In all windows.
        history: The points of the training, as mappings.
        conditions: The fields of `Conditions`.
    """
    options = found.options
    assert options.method and options.data, "the sources have settled them"
    assert options.train_batch_size and options.learning_rate and options.train_seq_len, "the run has settled them"
    per_step = options.train_batch_size * options.gradient_accumulation_steps * training["processes"]
    seen = training["steps"] * per_step / training["windows"]
    teacher = redact(options.teacher) if options.teacher else None
    told = lineage.told(found.report, teacher, evaluation)
    size, model_type = size_of(model), found.config.model_type
    return RecoverReport(
        method=options.method,
        train_weights=options.train_weights,
        model=redact(options.model),
        teacher=teacher,
        model_type=Sides(model_type, model_type),
        parameters=Sides(size.parameters, size.parameters),
        bytes=Sides(size.bytes, size.bytes),
        recovered_share=share(told["dense_perplexity"], scores["perplexity"]),
        evaluation=evaluation,
        training=Training(
            data=redact(options.data),
            max_seq_len=options.train_seq_len,
            epochs=seen,
            tokens=round(seen * tokens),
            tokens_per_second=seen * tokens / max(60 * training["minutes"], 1e-9),
            learning_rate=options.learning_rate,
            batch_size=options.train_batch_size,
            gradient_accumulation_steps=options.gradient_accumulation_steps,
            **training,
        ),
        history=[Point(**point) for point in history],
        **scores,
        **told,
        **conditions,
    )


def share(dense: float | None, perplexity: Measured[float]) -> float | None:
    """Return the share of the gap in log-perplexity to the dense model that was closed; None where it is not known."""
    before, after = perplexity.before, perplexity.after
    if not dense or not before or not after or not all(map(math.isfinite, (dense, before, after))) or before <= dense:
        return None
    return math.log(before / after) / math.log(before / dense)
