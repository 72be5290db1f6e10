"""An evaluation as tables for the terminal: one column for each model."""

import math
from collections.abc import Sequence
from statistics import median

from llm_pruner.console import aligned
from llm_pruner.evaluation.zero_shot import table
from llm_pruner.output.reports import EvaluateReport, Ratio
from llm_pruner.output.wording import NOT_FINITE


def tables(evaluation: EvaluateReport) -> str:
    """Return tables of sizes, perplexities, speed with its ratio to the dense model, and the zero-shot table."""
    models, ratios = evaluation.models, evaluation.ratios
    rows = [["", *(model.name for model in models)]]
    for key in ("parameters", "bytes"):
        rows.append([key, *(f"{getattr(model, key):,}" for model in models)])
    for text in models[0].perplexity:
        rows.append([f"perplexity, {text}", *(_number(model.perplexity[text].value) for model in models)])
        scores = [model.perplexity[text] for model in models]
        if len({(score.windows, score.max_seq_len) for score in scores}) > 1:
            # other tokens, so that perplexities by token say nothing
            rows.append([f"bits per byte, {text}", *(_bits(score.bits_per_byte) for score in scores)])
    measured = [model.speed for model in models if model.speed]
    if measured:
        for mode in measured[0].modes:
            for what in ("prefill", "decode"):
                cells = [_median(getattr(one.modes[mode], f"{what}_tokens_per_second")) for one in measured]
                rows.append([f"{what} tokens/s, {mode}", *cells])
                rows.append(["  × the dense model's", *(_ratio(ratios, model.name, mode, what) for model in models)])
            cells = [_median(one.modes[mode].time_to_first_token_seconds, 1000) for one in measured]
            rows.append([f"ms to the first token, {mode}", *cells])
        rows.append(["peak memory, MiB", *(_mebibytes(one.peak_memory) for one in measured)])
    parts = [aligned(rows)]
    if any(model.zero_shot for model in models):
        parts.append(table({model.name: model.zero_shot for model in models}))
    return "\n\n".join(parts)


def _number(value: float) -> str:
    return f"{value:,.2f}" if math.isfinite(value) else NOT_FINITE


def _bits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _median(values: Sequence[float] | None, unit: float = 1) -> str:
    return f"{median(values) * unit:,.1f}" if values else "-"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.0f}"


def _ratio(ratios: dict[str, dict[str, dict[str, Ratio]]], name: str, mode: str, what: str) -> str:
    found = ratios.get(name, {}).get(mode, {}).get(what)
    return f"{found.median:.2f} ({found.low:.2f} – {found.high:.2f})" if found else ""
