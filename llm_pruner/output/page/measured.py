"""What an evaluation measured: zero-shot tasks and speed, as tables and bars."""

from collections.abc import Sequence
from statistics import median

from llm_pruner.output.page.columns import Bar, bars
from llm_pruner.output.page.elements import (
    figure,
    figures,
    legend,
    named,
    noted,
    section,
    table,
)
from llm_pruner.output.page.markup import Markup, tag
from llm_pruner.output.page.models import Model
from llm_pruner.output.page.tasks import (
    cell,
    main_metric,
    mean,
    metrics_of,
    questions,
    tasks_of,
    value_of,
)
from llm_pruner.output.page.wording import (
    UNKNOWN,
    duration,
    known,
    number,
    size,
    times,
)

SPEEDS = {"prefill": "prefill_tokens_per_second", "decode": "decode_tokens_per_second"}
ABREAST = 3  # tasks in one figure, so that figures stand side by side
FIRST = "time_to_first_token_seconds"


def zero_shot(models: Sequence[Model]) -> Markup | None:
    """Every metric of every task in a table, the accuracies as bars."""
    models = [model for model in models if model.zero_shot]
    rows, groups, means = [], [], mean(models)
    for task in tasks_of(models):
        for metric in metrics_of(models, task):
            cells = [cell(model, task, metric) for model in models]
            rows.append([f"{task}, {metric.replace('_', ' ')}", known(questions(models, task)), *cells])
        if main_metric(models, task):
            groups.append((task, [_bar(model, task, main_metric(models, task)) for model in models]))
    if not rows:
        return None
    if means:
        values = [means[model.label] for model in models]
        own = [Bar(model.label, value, f"{100 * value:.1f}", model.colour) for model, value in zip(models, values)]
        groups.append(("mean", own))
        rows.append(["mean accuracy", UNKNOWN, *(bar.text for bar in own)])
    drawn = []
    for place in range(0, len(groups), ABREAST):
        some = groups[place : place + ABREAST]
        title = f"Zero-shot accuracy: {', '.join(name for name, _ in some)}"
        drawn.append(figure(bars(title, some, 1.0)))
    said = tag("p", "Accuracy in percent (acc norm where a task has it, else acc), with its standard error.")
    content = (said, _legend(models), figures(drawn)) if groups else ()
    shown = table("Zero-shot tasks", ["task, metric", "questions", *(named(model.label) for model in models)], rows)
    return section("zero-shot", "Zero-shot tasks", *content, shown)


def _bar(model: Model, task: str, metric: str) -> Bar:
    value, error = value_of(model, task, metric)
    spread = (None, None) if None in (value, error) else (max(value - error, 0.0), min(value + error, 1.0))
    return Bar(model.label, value, cell(model, task, metric), model.colour, *spread)


def speed(models: Sequence[Model]) -> Markup | None:
    """Tokens per second of every model and mode, with the spread over the repeats."""
    models = [model for model in models if model.speed]
    if not models:
        return None
    modes = list(dict.fromkeys(mode for model in models for mode in model.speed["modes"]))
    rows, drawn = [], []
    for model in models:
        for mode in modes:
            found = model.speed["modes"].get(mode) or {}
            row = [noted(named(model.label, f"c{model.colour}"), mode)]
            for what, name in SPEEDS.items():
                row += [_spread(found.get(name)), _ratio(model, mode, what)]
            first = found.get(FIRST)
            row.append(duration_of_first(first) if first else UNKNOWN)
            rows.append([*row, known(model.speed.get("peak_memory"), size)])
    for what, name in SPEEDS.items():
        groups = []
        for mode in modes:
            found = [((model.speed["modes"].get(mode) or {}).get(name), model) for model in models]
            own = [Bar(model.label, median(values), number(median(values)), model.colour, min(values), max(values))
                   for values, model in found if values]  # fmt: skip
            if own:
                groups.append((f"{what}, {mode}", own))
        if groups:
            drawn.append(figure(bars(f"{what}: tokens per second", groups), f"{what}: tokens per second"))
    head = ["model, mode"]
    head += [name for what in SPEEDS for name in (f"{what}, tokens/s", "to dense")]
    shown = table("Speed: median (lowest – highest)", [*head, "first token", "peak memory"], rows)
    said = tag("p", "Bars are medians, lines go from the lowest to the highest of the repeats. More is better.")
    return section("speed", "Speed", said, _legend(models), figures(drawn), shown, _failures(models))


def duration_of_first(values: Sequence[float]) -> str:
    value = median(values)
    return f"{1000 * value:,.1f} ms" if value < 1 else duration(value)


def _legend(models: Sequence[Model]) -> Markup:
    return legend([(f"c{model.colour}", model.label) for model in models])


def _spread(values: Sequence[float] | None) -> Markup | str:
    if not values:
        return UNKNOWN
    return noted(number(median(values)), f"{number(min(values))} – {number(max(values))}")


def _ratio(model: Model, mode: str, what: str) -> Markup | str:
    found = (model.ratios.get(mode) or {}).get(what)
    if not found:
        return UNKNOWN
    return noted(times(found["median"]), f"{times(found['low'])} – {times(found['high'])}")


def _failures(models: Sequence[Model]) -> list[Markup]:
    """What was not measured, and why."""
    return [
        tag("p", f"{model.label}, {mode}: not measured, {found['reason']}")
        for model in models
        for mode, found in model.speed["modes"].items()
        if "reason" in found
    ]
