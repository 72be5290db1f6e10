"""What a recovery's report says of its result: sizes, perplexities, how much training, and the share of the gap."""

import math

from llm_pruner.errors import redact
from llm_pruner.output import lineage
from llm_pruner.output.report import size_of
from llm_pruner.recovery.sources import Sources


def outcome(
    found: Sources, model, perplexity: dict, evaluation: dict, training: dict, tokens: int, history: list[dict]
) -> dict:
    """The report without its conditions. evaluation: what perplexity was measured on. training: windows, steps,
    minutes, processes. tokens: in all windows."""
    options = found.options
    per_step = options.batch_size * options.gradient_accumulation_steps * training["processes"]
    seen = training["steps"] * per_step / training["windows"]
    teacher = redact(options.teacher) if options.teacher else None
    told = lineage.told(found.report, teacher, evaluation)
    parameters, size = size_of(model)
    return {
        "step": "recover",
        "method": options.method,
        "train_weights": options.train_weights,
        "model": redact(options.model),
        "teacher": teacher,
        "model_type": dict.fromkeys(("before", "after"), found.config.model_type),
        "parameters": dict.fromkeys(("before", "after"), parameters),
        "bytes": dict.fromkeys(("before", "after"), size),
        "perplexity": perplexity,
        "recovered_share": share(told["dense_perplexity"], perplexity),
        "evaluation": evaluation,
        "training": {
            "data": redact(options.data),
            "max_seq_len": options.max_seq_len,
            "epochs": seen,
            "tokens": round(seen * tokens),
            "tokens_per_second": seen * tokens / max(60 * training["minutes"], 1e-9),
            "learning_rate": options.learning_rate,
            "batch_size": options.batch_size,
            "gradient_accumulation_steps": options.gradient_accumulation_steps,
            **training,
        },
        "history": history,
        **told,
    }


def share(dense: float | None, perplexity: dict) -> float | None:
    """Of the gap in log-perplexity to the dense model, what was recovered."""
    before, after = perplexity.get("before"), perplexity.get("after")
    if not dense or not before or not after or not all(map(math.isfinite, (dense, before, after))) or before <= dense:
        return None
    return math.log(before / after) / math.log(before / dense)
