"""The page about a run or an evaluation: one HTML file that needs nothing else, no network and no script.

Here is what the template cannot compute: which models and widths are compared, and the charts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llm_pruner.model.axes import HIDDEN, LAYER, Axis
from llm_pruner.model.families import known_axes
from llm_pruner.output import charts, lineage, tasks, wording
from llm_pruner.output.manifest import START
from llm_pruner.output.models import EVALUATED, Model, Text, dense_of, models_of, name_of, of_other_tokens, steps_of
from llm_pruner.output.reports import (
    CheckpointReport,
    EvaluateReport,
    PruneReport,
    Reconstruction,
    RecoverReport,
    SparsifyReport,
    Tried,
)

TEMPLATES = Path(__file__).with_name("templates")
SPEEDS = {"prefill": "prefill_tokens_per_second", "decode": "decode_tokens_per_second"}


class Figure(NamedTuple):
    """A chart, None where there is no matplotlib, and what is below it."""

    svg: Markup | None
    caption: str


@dataclass(frozen=True)
class Change:
    """Widths of every layer of `before`; in `after` 0 where a layer is gone. `same`: what is alike in all layers."""

    label: str
    colour: int
    before: dict[str, list[int]]
    after: dict[str, list[int]]
    same: list[str]
    gone: list[int]


def environment(**options: Any) -> Environment:
    """Return the templates, with numbers as people read them for filters."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined,
        keep_trailing_newline=True, **options,
    )  # fmt: skip
    names = ("number", "size", "duration", "percent", "times", "known", "span", "plural", "anything")
    found.filters |= {name: getattr(wording, name) for name in names} | {"name_of": name_of}
    found.tests |= {
        "pruning": lambda step: isinstance(step, PruneReport),
        "recovery": lambda step: isinstance(step, RecoverReport),
        "sparsifying": lambda step: isinstance(step, SparsifyReport),
    }
    found.globals |= {"tasks": tasks, "wording": wording}
    return found


def page(reports: Sequence[CheckpointReport], evaluation: EvaluateReport | None = None) -> str:
    """Draw the page about these runs; a section is there when there are figures for it.

    Args:
        reports: Of runs that made checkpoints, in the order of the steps; one that brings those before it along
            (`made_from`) needs no other.
        evaluation: Of their models, or of others.
    """
    steps = steps_of(reports)
    models = models_of(steps, evaluation)
    texts = list(dict.fromkeys(text for model in models for text in model.perplexity))
    changes = [_change_of(step) for step in steps if isinstance(step, PruneReport)] or _changes_of_evaluation(models)
    prunings = [step for step in steps if isinstance(step, PruneReport)]
    return START + environment(autoescape=True).get_template("page.html").render(
        css=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),
        warning=lineage.warning(steps[-1]) if steps else None,
        steps=steps, evaluation=evaluation, models=models, dense=dense_of(models), made=_made(models, steps),
        texts=texts, weighed=_weighed(steps, models),
        quality=[figure for text in texts for figure in _quality(models, text)],
        changes=[(change, _columns(change)) for change in changes if change.before or change.same],
        reconstructions=[
            (found, _search(found), _shapes(found), [axis.title for axis in _axes(found)])
            for step in prunings if (found := step.reconstruction)
        ],
        scores=[(step, _boxes(step)) for step in prunings if step.scores],
        recoveries=[(step, _curves(step)) for step in steps if isinstance(step, RecoverReport)],
        tested=[model for model in models if model.zero_shot], accuracies=_accuracies(models),
        timed=[model for model in models if model.speed], speeds=_speeds(models), median=median, SPEEDS=SPEEDS,
    )  # fmt: skip


def _weighed(steps: Sequence[CheckpointReport], models: Sequence[Model]) -> list[str]:
    """The texts that bits per byte are shown of: those that models cut into other tokens."""
    told = [step.evaluation.data for step in steps if step.evaluation and step.bits_per_byte.after is not None]
    return list(dict.fromkeys((*told, *of_other_tokens(models))))


def _made(models: Sequence[Model], steps: Sequence[CheckpointReport]) -> Model | None:
    """The model that came out at last, where it can be compared with the dense one."""
    others = [model for model in models if model.role != EVALUATED]
    if not steps and len(models) == 2:
        others = list(models)
    return others[-1] if others and dense_of(models) not in (None, others[-1]) else None


def _quality(models: Sequence[Model], text: Text) -> list[Figure]:
    """Perplexity against parameters, where two models at least have both."""
    measured = [model for model in models if text in model.perplexity and model.parameters is not None]
    points, missing = [], []
    for model in measured:
        value = model.perplexity[text]
        if wording.finite(value):
            points.append((model.label, model.parameters, value, model.colour))
        else:
            missing.append(model.label)
    if len(points) < 2:
        return []
    caption = f"{text[0]}: {text[1]:,} windows of {text[2]:,} tokens. Lower and further left is better."
    caption += f" Not drawn, because not finite: {', '.join(missing)}." if missing else ""
    title = f"Perplexity on {text[0]} against parameters"
    return _figures(charts.scatter(title, points, "parameters", "perplexity"), caption)


def _figures(svg: Markup | None, caption: str) -> list[Figure]:
    return [Figure(svg, caption)] if svg else []


def _change_of(step: PruneReport) -> Change:
    before, after = ({n: _each(w, getattr(step.layers, side)) for n, w in getattr(step.widths, side).items()}
                     for side in ("before", "after"))  # fmt: skip
    return _change(f"{step.model}, pruned", before, after, step.layers.kept or list(range(step.layers.before)))


def _changes_of_evaluation(models: Sequence[Model]) -> list[Change]:
    """One for all models of the same widths. Which layers a model with fewer of them lost is not known."""
    dense = dense_of(models)
    if dense is None or not dense.layers:
        return []
    alike: dict[str, list[Model]] = {}
    for model in models:
        if model.layers and (model.widths, model.layers) != (dense.widths, dense.layers):
            alike.setdefault(repr((model.widths, model.layers)), []).append(model)
    changes = []
    for own in alike.values():
        layers, label = own[0].layers or 0, ", ".join(model.label for model in own)
        if layers != dense.layers:
            label += f": {layers} layers, dense has {dense.layers}"
        before, after = ({n: _each(w, layers) for n, w in model.widths.items()} for model in (dense, own[0]))
        changes.append(_change(label, before, after, list(range(layers)), own[0].colour))
    return changes


def _each(width: int | list[int], layers: int) -> list[int]:
    return width if isinstance(width, list) else [width] * layers


def _change(label: str, before: dict, after: dict, kept: list[int], colour: int = 1) -> Change:
    layers = max(map(len, before.values()), default=0)
    inside = {axis.field for axis in known_axes() if axis.scope == LAYER}
    own: dict[str, tuple[list[int], list[int]]] = {}
    same = []
    for name in (name for name in before if name in after and len(before[name]) == layers):
        old, new = before[name], [0] * layers
        if len(after[name]) != len(kept):
            continue
        for place, width in zip(kept, after[name]):
            new[place] = width
        if len(set(old)) == len(set(after[name])) == 1 and (name not in inside or old[0] == after[name][0]):
            same.append(f"{name} {old[0]:,}" + (f" → {after[name][0]:,}" if old[0] != after[name][0] else ""))
        elif old == new:
            same.append(f"{name} as before")
        else:
            own[name] = old, new
    olds, news = ({name: pair[side] for name, pair in own.items()} for side in (0, 1))
    return Change(label, colour, olds, news, same, sorted(set(range(layers)) - set(kept)))


def _columns(change: Change) -> list[Figure]:
    drawn = []
    for name, old in change.before.items():
        new = change.after[name]
        caption = f"{name}: {wording.percent(1 - sum(new) / max(sum(old), 1))} removed"
        drawn += _figures(charts.columns(f"{name} per layer, {change.label}", old, new, name, change.colour), caption)
    return drawn


def _search(found: Reconstruction) -> list[Figure]:
    drawn = []
    tried = [each for each in found.search or () if wording.finite(each.kl, each.expected)]
    if len(tried) > 1:
        names = {_shape(each): "measured" for each in tried} | {_shape(_chosen(found)): "chosen"}
        points = [(name := names[_shape(each)], each.expected, each.kl, 1 + (name == "chosen")) for each in tried]
        caption = f"{len(tried)} shapes of the size that was asked for, reconstructed on a part of the text. "
        title = "KL of the measured shapes against their second-order cost"
        svg = charts.scatter(title, points, "second-order cost", "KL(dense ‖ pruned)")
        drawn += _figures(svg, f"{caption}Lower is better.")
    errors = found.stream_errors or []
    if len(errors) > 1 and wording.finite(*errors):
        caption = "Relative squared error of the residual stream behind each layer, on held-out text."
        title, behind = "Error of the residual stream per layer", list(enumerate(errors))
        drawn += _figures(charts.curve(title, behind, 1, "o-", "layer", "error"), caption)
    return drawn


def _axes(found: Reconstruction) -> list[Axis]:
    """The axes of the shapes that were measured."""
    widths = [each.widths for each in (*(found.search or ()), *(found.finals or ()))]
    named = {name for own in widths for layer in (own if isinstance(own, list) else [own]) for name in layer}
    return [axis for axis in known_axes() if axis.field in named]


def _shapes(found: Reconstruction) -> list[dict[str, Any]]:
    """Every shape that was measured, on a part of the text and, the best ones, on all of it; the best first."""
    finals = {_shape(each): each for each in found.finals or ()}
    parts = {_shape(each): each for each in found.search or ()}
    rows, axes = [], _axes(found)
    for shape, each in (parts | finals).items():
        layers = each.widths if isinstance(each.widths, list) else [each.widths]
        rows.append({
            "kind": "per layer" if len(layers) > 1 else "lm_head of its own" if each.untied else "uniform",
            "widths": [wording.span([layer[axis.field] for layer in layers]) for axis in axes],
            "layers": "all" if each.layers is None else len(each.layers), "cost": each.expected,
            "part": parts[shape].kl if shape in parts else None, "all": finals[shape].kl if shape in finals else None,
            "final": shape in finals, "chosen": shape == _shape(_chosen(found)),
        })  # fmt: skip
    return sorted(rows, key=lambda row: (not row["final"], _rank(row["all"]), _rank(row["part"])))


def _rank(kl: float | None) -> float:
    return kl if kl is not None and kl == kl else float("inf")


def _chosen(found: Reconstruction) -> Tried:
    return (found.finals or found.search or [])[0]


def _shape(each: Tried) -> str:
    """What tells a shape from others."""
    return repr((each.widths, each.layers, each.untied))


def _boxes(step: PruneReport) -> list[Figure]:
    drawn = []
    for name, rows in step.scores.items():
        if wording.finite(*(value for row in rows for value in row)):
            where = "the residual stream" if name == HIDDEN.field else "each layer"
            svg = charts.boxes(f"Scores by {step.importance}: {name}", rows, f"score, {name}")
            drawn += _figures(svg, f"Units of {name} in {where}, scored by {step.importance}.")
    return drawn


def _curves(step: RecoverReport) -> list[Figure]:
    last = max((point.seconds for point in step.history), default=0.0)
    unit, name = next((u, n) for u, n in ((3600, "hours"), (60, "minutes"), (1, "seconds")) if last >= 3 * u or u == 1)
    drawn = []
    losses = [(point.seconds / unit, point.loss) for point in step.history if point.loss is not None]
    if sum(value == value for _, value in losses) > 1:
        caption = f"Training loss over {step.training.steps:,} steps."
        drawn += _figures(charts.curve("Training loss over time", losses, 1, "-", name, "loss"), caption)
    points = [(point.seconds / unit, point.perplexity) for point in step.history if point.perplexity is not None]
    if any(value == value for _, value in points):
        levels = [("dense", step.dense_perplexity, 0), ("pruned", step.perplexity.before, 1)]
        levels = [level for level in levels if level[1] is not None and level[1] == level[1]]
        caption = "Dots: while training, on the beginning of the text. Dashed lines: on all of it."
        title = "Perplexity over the time of training"
        drawn += _figures(charts.curve(title, points, 2, "o-", name, "perplexity", levels), caption)
    return drawn


def _accuracies(models: Sequence[Model]) -> list[Figure]:
    tested = [model for model in models if model.zero_shot]
    scores = [model.zero_shot for model in tested]
    found = [(task, metric) for task in tasks.tasks_of(scores) if (metric := tasks.main_metric(scores, task))]
    if not found:
        return []
    series = []
    for model in tested:
        values = [tasks.value_of(model.zero_shot, task, metric) for task, metric in found]
        errors = [(100 * (error or 0.0),) * 2 for _, error in values]
        percents = [None if value is None else 100 * value for value, _ in values]
        series.append(charts.Bars(model.label, model.colour, percents, errors))
    svg = charts.bars(
        "Zero-shot accuracy", [task for task, _ in found], series, "%", inches=1 + 0.25 * len(found) * len(series)
    )
    return _figures(svg, "Accuracy in percent, with its standard error.")


def _speeds(models: Sequence[Model]) -> list[Figure]:
    drawn = []
    timed = [model for model in models if model.speed]
    modes = list(dict.fromkeys(mode for model in timed if model.speed for mode in model.speed.modes))
    for what, name in SPEEDS.items():
        series = []
        for model in timed:
            found = [getattr(model.speed.modes.get(mode), name, None) for mode in modes] if model.speed else []
            errors = [(median(v) - min(v), max(v) - median(v)) if v else (0.0, 0.0) for v in found]
            series.append(charts.Bars(model.label, model.colour, [median(v) if v else None for v in found], errors))
        if any(value is not None for own in series for value in own.values):
            title, inches = f"{what}: tokens per second", 1 + 0.25 * len(modes) * len(series)
            drawn += _figures(charts.bars(title, modes, series, "tokens per second", inches=inches), title)
    return drawn
