"""Zero-shot results of several models: which metrics there are, and what goes into a table."""

from collections.abc import Sequence

from llm_pruner.output.page.models import Model
from llm_pruner.output.page.wording import UNKNOWN, number

ACCURACIES = ("exact_match", "em", "f1")  # besides all that are called acc


def tasks_of(models: Sequence[Model]) -> list[str]:
    return list(dict.fromkeys(task for model in models for task in model.zero_shot))


def metrics_of(models: Sequence[Model], task: str) -> list[str]:
    """The metrics of a task, as lm_eval calls them."""
    names = dict.fromkeys(name for model in models for name in model.zero_shot.get(task) or {})
    return [name for name in names if name != "samples" and not name.partition(",")[0].endswith("_stderr")]


def main_metric(models: Sequence[Model], task: str) -> str | None:
    """acc_norm, else acc, else another accuracy; None for a task without."""
    names = metrics_of(models, task)
    return next((name for name in ("acc_norm", "acc", *filter(is_accuracy, names)) if name in names), None)


def is_accuracy(metric: str) -> bool:
    name = metric.partition(",")[0]
    return "acc" in name or name in ACCURACIES


def value_of(model: Model, task: str, metric: str | None) -> tuple[float | None, float | None]:
    """(the value, its standard error), each None where it is not known."""
    row = model.zero_shot.get(task) or {}
    name, comma, filtered = (metric or "").partition(",")
    error = row.get(f"{name}_stderr{comma}{filtered}")
    return row.get(metric), error if isinstance(error, int | float) else None


def cell(model: Model, task: str, metric: str) -> str:
    """Accuracies in percent."""
    value, error = value_of(model, task, metric)
    if value is None:
        return UNKNOWN
    said = (lambda v: f"{100 * v:.1f}") if is_accuracy(metric) else number
    return said(value) if error is None else f"{said(value)} ± {said(error)}"


def questions(models: Sequence[Model], task: str) -> int | None:
    found = ((model.zero_shot.get(task) or {}).get("samples") for model in models)
    return next((number for number in found if number is not None), None)


def mean(models: Sequence[Model]) -> dict[str, float]:
    """{label: the mean accuracy}, over the tasks that every model has; empty where these are fewer than two."""
    found: dict[str, list[float]] = {model.label: [] for model in models}
    for task in tasks_of(models):
        metric = main_metric(models, task)
        values = [value_of(model, task, metric)[0] for model in models]
        if metric and None not in values:
            for model, value in zip(models, values):
                found[model.label].append(value)
    return {label: sum(values) / len(values) for label, values in found.items() if len(values) > 1}
