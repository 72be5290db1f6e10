"""Zero-shot scores: which metric of a task counts, and what is written of it."""

from collections.abc import Iterable, Mapping
from typing import Any

from llm_pruner.output.wording import UNKNOWN, number

# besides all that are called acc
ACCURACIES = ("exact_match", "em", "f1")
# {task: {metric: value, metric_stderr: value, …, "samples": questions}}
Scores = Mapping[str, Mapping[str, Any]]


def tasks_of(models: Iterable[Scores]) -> list[str]:
    """Return the tasks that any of the models has."""
    return list(dict.fromkeys(task for scores in models for task in scores))


def metrics_of(models: Iterable[Scores], task: str) -> list[str]:
    """Return the metrics of a task, as lm_eval calls them."""
    names = dict.fromkeys(name for scores in models for name in scores.get(task) or {})
    return [name for name in names if name != "samples" and not name.partition(",")[0].endswith("_stderr")]


def main_metric(models: Iterable[Scores], task: str) -> str | None:
    """Return acc_norm, else acc, else another accuracy; None for a task without."""
    names = metrics_of(models, task)
    return next((name for name in ("acc_norm", "acc", *filter(is_accuracy, names)) if name in names), None)


def is_accuracy(metric: str) -> bool:
    """Return whether a metric is a share of right answers."""
    name = metric.partition(",")[0]
    return "acc" in name or name in ACCURACIES


def value_of(scores: Scores, task: str, metric: str) -> tuple[float | None, float | None]:
    """Return (the value, its standard error), each None where it is not known.

    Args:
        scores: Of one model.
        task: The name of the task.
        metric: The name of the metric, with its filter behind a comma.
    """
    row = scores.get(task) or {}
    name, comma, filtered = metric.partition(",")
    error = row.get(f"{name}_stderr{comma}{filtered}")
    return row.get(metric), error if isinstance(error, int | float) else None


def cell(scores: Scores, task: str, metric: str) -> str:
    """Return the value with its standard error as text; accuracies in percent.

    Args:
        scores: Of one model.
        task: The name of the task.
        metric: The name of the metric, with its filter behind a comma.
    """
    value, error = value_of(scores, task, metric)
    if value is None:
        return UNKNOWN
    written = (lambda v: f"{100 * v:.1f}") if is_accuracy(metric) else number
    return written(value) if error is None else f"{written(value)} ± {written(error)}"


def means(models: list[Scores]) -> list[float] | None:
    """Return each model's mean accuracy over the tasks that all have; None where these are fewer than two."""
    shared = []
    for task in tasks_of(models):
        metric = main_metric(models, task)
        values = [value_of(scores, task, metric)[0] for scores in models] if metric else [None]
        if None not in values:
            shared.append(values)
    return [sum(values) / len(values) for values in zip(*shared)] if len(shared) > 1 else None
