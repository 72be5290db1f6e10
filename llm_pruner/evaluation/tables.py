"""An evaluation as tables for the screen: one column for each model."""

from collections.abc import Sequence

from llm_pruner.console import aligned


def tables(evaluation: dict) -> str:
    """Size, perplexities, speed with its ratio to the dense model, and the zero-shot table where there is one."""
    models, ratios = evaluation["models"], evaluation["ratios"]
    rows = [["", *(model["name"] for model in models)]]
    for key in ("parameters", "bytes"):
        rows.append([key, *(f"{model[key]:,}" for model in models)])
    for text in models[0]["perplexity"]:
        rows.append([f"perplexity, {text}", *(_number(model["perplexity"][text]["value"]) for model in models)])
    measured = [model["speed"] for model in models if model["speed"]]
    if measured:
        for mode in measured[0]["modes"]:
            for what in ("prefill", "decode"):
                cells = [_median(one["modes"][mode].get(f"{what}_tokens_per_second")) for one in measured]
                rows.append([f"{what} tokens/s, {mode}", *cells])
                rows.append(["  × the dense model's", *(_ratio(ratios, model["name"], mode, what) for model in models)])
            cells = [_median(one["modes"][mode].get("time_to_first_token_seconds"), 1000) for one in measured]
            rows.append([f"ms to the first token, {mode}", *cells])
        rows.append(["peak memory, MiB", *(_mebibytes(one["peak_memory"]) for one in measured)])
    parts = [aligned(rows)]
    if any(model["zero_shot"] for model in models):
        from llm_pruner.evaluation.zero_shot import table

        parts.append(table({model["name"]: model["zero_shot"] for model in models}))
    return "\n\n".join(parts)


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:,.2f}"


def _median(values: Sequence[float] | None, unit: float = 1) -> str:
    from statistics import median

    return f"{median(values) * unit:,.1f}" if values else "-"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.0f}"


def _ratio(ratios: dict, name: str, mode: str, what: str) -> str:
    found = ratios.get(name, {}).get(mode, {}).get(what)
    return f"{found['median']:.2f} ({found['low']:.2f} – {found['high']:.2f})" if found else ""
