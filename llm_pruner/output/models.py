"""The models that a page or a card compares, from the reports of the steps that made them and from an evaluation."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from llm_pruner.output import lineage
from llm_pruner.output.reports import (
    CheckpointReport,
    EvaluatedModel,
    EvaluateReport,
    PruneReport,
    Ratio,
    RecoverReport,
    Speed,
)

DENSE, PRUNED, EVALUATED = "dense", PruneReport.role, "evaluated"
# 0 is the dense model's, the others take turns
COLOURS = 7

# what perplexity was measured on: data, windows, tokens of each
Text = tuple[str, int, int]


@dataclass
class Model:
    """A model with what is known of it.

    `paths` are where it may be, perplexities go by the text and bits per byte by its name, and a width is a number or
    one for each layer. Speed and ratios to the dense model are the evaluation's.
    """

    label: str
    role: str
    colour: int
    paths: set[str] = field(default_factory=set)
    parameters: int | None = None
    bytes: int | None = None
    perplexity: dict[Text, float] = field(default_factory=dict)
    bits_per_byte: dict[str, float] = field(default_factory=dict)
    zero_shot: dict[str, dict[str, Any]] = field(default_factory=dict)
    widths: dict[str, int | list[int]] = field(default_factory=dict)
    layers: int | None = None
    speed: Speed | None = None
    ratios: dict[str, dict[str, Ratio]] = field(default_factory=dict)


def steps_of(reports: Iterable[CheckpointReport]) -> list[CheckpointReport]:
    """Return the reports, each behind the ones of the models that it started from."""
    found: list[CheckpointReport] = []
    for report in reports:
        found += [step for step in lineage.steps(report) if step not in found]
    return found


def models_of(steps: Sequence[CheckpointReport], evaluation: EvaluateReport | None = None) -> list[Model]:
    """Return the models before and after each step, then those of the evaluation that are none of them.

    Args:
        steps: The reports of the runs that made them, the first one first.
        evaluation: Of some of them, and perhaps of others.
    """
    models: list[Model] = []
    for step, text in zip(steps, texts_of(steps)):
        if not models:
            models += _first(step)
        models[-1].paths.add(step.model)
        _add_scores(models[-1], step, "before", text)
        if text and step.dense_perplexity is not None and (dense := dense_of(models)):
            dense.perplexity.setdefault(text, step.dense_perplexity)
        new = _new(models, f"{step.role} ({step.how})", step.role)
        if not isinstance(step, PruneReport):
            new.widths, new.layers = models[-1].widths, models[-1].layers
        _add_sizes(new, step, "after")
        _add_scores(new, step, "after", text)
        if saved := step.options.get("save_model"):
            new.paths.add(saved)
        models.append(new)
    if evaluation is None:
        return models
    for own in evaluation.models:
        found = next((model for model in models if _is_same(model, own)), None)
        if found is None:
            found = _new(models, own.name, DENSE if own.name == evaluation.dense else EVALUATED)
            models.append(found)
        _add_evaluation(found, own, evaluation)
    return models


def of_other_tokens(models: Iterable[Model]) -> list[str]:
    """Return the texts that models cut into other tokens, so that their perplexities by token do not compare."""
    found: dict[str, set[Text]] = {}
    for model in models:
        for text in model.perplexity:
            found.setdefault(text[0], set()).add(text)
    return [name for name, texts in found.items() if len(texts) > 1]


def dense_of(models: Iterable[Model]) -> Model | None:
    """Return the dense model, where it is among them."""
    return next((model for model in models if model.role == DENSE), None)


def texts_of(steps: Sequence[CheckpointReport]) -> list[Text | None]:
    """Return each step's text. Of files of one name with other content, all but the first are named by that too."""
    first: dict[str, str | None] = {}
    found: list[Text | None] = []
    for told in (step.evaluation for step in steps):
        if told is None:
            found.append(None)
            continue
        name = told.data
        if told.digest and first.setdefault(told.data, told.digest) != told.digest:
            name = f"{told.data} ({told.digest[:6]})"
        found.append((name, told.windows, told.max_seq_len))
    return found


def name_of(path: str) -> str:
    """Return the last part of a folder or hub id."""
    return PurePath(path).name or path


def _first(step: CheckpointReport) -> list[Model]:
    """The models that there were before the first step."""
    name, base = name_of(step.model), lineage.teacher_of(step) or step.base_model
    if not isinstance(step, RecoverReport) and base in (None, step.model):
        dense = Model(f"{DENSE} ({name})", DENSE, 0)
        _add_sizes(dense, step, "before")
        return [dense]
    models = []
    if base or step.dense_perplexity is not None:
        models.append(Model(f"{DENSE} ({name_of(base)})" if base else DENSE, DENSE, 0, {base} if base else set()))
    pruned = _new(models, f"{PRUNED} ({name})", PRUNED)
    _add_sizes(pruned, step, "before")
    return [*models, pruned]


def _new(models: Sequence[Model], label: str, role: str) -> Model:
    labels = {model.label for model in models}
    number = next(n for n in range(1, len(models) + 2) if (label if n == 1 else f"{label} {n}") not in labels)
    others = sum(model.role != DENSE for model in models)
    colour = 0 if role == DENSE else 1 + others % (COLOURS - 1)
    return Model(label if number == 1 else f"{label} {number}", role, colour)


def _add_sizes(model: Model, step: CheckpointReport, side: str) -> None:
    model.parameters, model.bytes = getattr(step.parameters, side), getattr(step.bytes, side)
    if isinstance(step, PruneReport):
        model.widths, model.layers = getattr(step.widths, side), getattr(step.layers, side)


def _add_scores(model: Model, step: CheckpointReport, side: str, text: Text | None) -> None:
    value = lineage.perplexity_before(step) if side == "before" else step.perplexity.after
    if text and value is not None:
        model.perplexity.setdefault(text, value)
    bits = getattr(step.bits_per_byte, side)
    if text and bits is not None:
        model.bits_per_byte.setdefault(text[0], bits)
    for task, scores in (getattr(step.zero_shot, side) or {}).items():
        model.zero_shot.setdefault(task, scores)


def _is_same(model: Model, own: EvaluatedModel) -> bool:
    """Whether an evaluated model is one that is there already: by its path or name, or by what it scores."""
    if None not in (model.parameters, own.parameters) and model.parameters != own.parameters:
        return False
    theirs = _perplexities(own)
    both = [(model.perplexity[text], value) for text, value in theirs.items() if text in model.perplexity]
    both = [pair for pair in both if all(map(math.isfinite, pair))]
    if any(abs(one - other) > 0.01 * one for one, other in both):
        return False
    names = [name for name in (own.name, own.path) if name]
    named = any(_is_same_path(path, name) for path in model.paths for name in names)
    return named or bool(both) and all(abs(one - other) <= 1e-5 * one for one, other in both)


def _is_same_path(one: str, other: str) -> bool:
    """Equal, or one is the end of the other, as of an absolute and a relative path."""
    parts, others = PurePath(one).parts, PurePath(other).parts
    shorter = min(len(parts), len(others))
    return shorter > 0 and parts[-shorter:] == others[-shorter:]


def _perplexities(own: EvaluatedModel) -> dict[Text, float]:
    return {(data, told.windows, told.max_seq_len): told.value for data, told in own.perplexity.items()}


def _add_evaluation(model: Model, own: EvaluatedModel, evaluation: EvaluateReport) -> None:
    model.parameters, model.bytes = own.parameters, own.bytes
    model.perplexity = _perplexities(own) | model.perplexity
    model.bits_per_byte |= {
        name: told.bits_per_byte for name, told in own.perplexity.items() if told.bits_per_byte is not None
    }
    model.zero_shot |= own.zero_shot
    if own.widths and not model.widths:
        model.widths, model.layers = own.widths, own.layers
    model.speed, model.ratios = own.speed, evaluation.ratios.get(own.name, {})
