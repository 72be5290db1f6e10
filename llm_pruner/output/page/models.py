"""The models that a page is about, from the reports of the steps that made them and from an evaluation: plain data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

DENSE, PRUNED, RECOVERED, SPARSE, EVALUATED = "dense", "pruned", "recovered", "sparse", "evaluated"
COLOURS = 7  # of the page: 0 is the dense model's, the others take turns

Text = tuple[str, int, int]  # what perplexity was measured on: data, windows, tokens of each


@dataclass
class Model:
    """paths: where it may be. perplexity: by the text. widths: a number, or one for each of its layers. speed, ratios:
    the evaluation's; ratios are to the dense model."""

    label: str
    role: str
    colour: int
    paths: set[str] = field(default_factory=set)
    parameters: int | None = None
    bytes: int | None = None
    perplexity: dict[Text, float | None] = field(default_factory=dict)
    zero_shot: dict[str, dict] = field(default_factory=dict)
    widths: dict[str, int | list[int]] = field(default_factory=dict)
    layers: int | None = None
    speed: dict | None = None
    ratios: dict = field(default_factory=dict)


def is_recovery(report: dict) -> bool:
    return report.get("step") == "recover"


def is_pruning(report: dict) -> bool:
    return "importance" in report


def role_of(step: dict) -> str:
    """The role of the model that this step made."""
    return PRUNED if is_pruning(step) else RECOVERED if is_recovery(step) else SPARSE


def how_of(step: dict) -> str:
    """The step's method, in a word or a few."""
    return step["importance"] if is_pruning(step) else step["method"] if is_recovery(step) else step["label"]


def steps_of(reports: Iterable[dict]) -> list[dict]:
    """The reports, each behind the one of the model that it started from, where it brings that along."""
    found: list[dict] = []
    for report in reports:
        earlier = steps_of([report["made_from"]]) if report.get("made_from") else []
        found += [each for each in (*earlier, report) if each not in found]
    return found


def models_of(steps: Sequence[dict], evaluation: dict | None) -> list[Model]:
    """The models before and after each step, then those of the evaluation that are none of them."""
    models: list[Model] = []
    for step, text in zip(steps, _texts(steps)):
        if not models:
            models += _start(step)
        models[-1].paths.add(step["model"])
        _scored(models[-1], step, "before", text)
        if text and step.get("dense_perplexity") is not None and (dense := dense_of(models)):
            dense.perplexity.setdefault(text, step["dense_perplexity"])
        role = role_of(step)
        new = _new(models, f"{role} ({how_of(step)})", role)
        if not is_pruning(step):
            new.widths, new.layers = models[-1].widths, models[-1].layers
        _sized(new, step, "after")
        _scored(new, step, "after", text)
        if saved := (step.get("options") or {}).get("save_model"):
            new.paths.add(saved)
        models.append(new)
    for own in (evaluation or {}).get("models", ()):
        found = next((model for model in models if _same(model, own)), None)
        if found is None:
            dense = own["name"] == evaluation.get("dense")
            found = _new(models, own["name"], DENSE if dense else EVALUATED)
            models.append(found)
        _add_evaluation(found, own, evaluation)
    return models


def dense_of(models: Iterable[Model]) -> Model | None:
    return next((model for model in models if model.role == DENSE), None)


def text_of(step: dict) -> Text | None:
    told = step.get("evaluation")
    return (told["data"], told["windows"], told["max_seq_len"]) if told else None


def _texts(steps: Sequence[dict]) -> list[Text | None]:
    """What each step scored on. Of files of one name with other content, all but the first are named by that too."""
    first: dict[str, str | None] = {}
    found = []
    for step in steps:
        text, digest = text_of(step), (step.get("evaluation") or {}).get("digest")
        if text and digest and first.setdefault(text[0], digest) != digest:
            text = (f"{text[0]} ({digest[:6]})", *text[1:])
        found.append(text)
    return found


def name_of(path: str) -> str:
    """The last part of a folder or hub id."""
    return PurePath(path).name or path


def _start(step: dict) -> list[Model]:
    """The models that there were before the first step."""
    name, base = name_of(step["model"]), step.get("teacher") or step.get("base_model")
    if not is_recovery(step) and base in (None, step["model"]):
        dense = Model(f"{DENSE} ({name})", DENSE, 0)
        _sized(dense, step, "before")
        return [dense]
    models = []
    if base or step.get("dense_perplexity") is not None:
        models.append(Model(f"{DENSE} ({name_of(base)})" if base else DENSE, DENSE, 0, {base} - {None}))
    pruned = _new(models, f"{PRUNED} ({name})", PRUNED)
    _sized(pruned, step, "before")
    return [*models, pruned]


def _new(models: Sequence[Model], label: str, role: str) -> Model:
    labels = {model.label for model in models}
    number = next(n for n in range(1, len(models) + 2) if (label if n == 1 else f"{label} {n}") not in labels)
    colour = 0
    if role != DENSE:
        colour = 1 + sum(model.role != DENSE for model in models) % (COLOURS - 1)
    return Model(label if number == 1 else f"{label} {number}", role, colour)


def _sized(model: Model, step: dict, side: str) -> None:
    model.parameters, model.bytes = step["parameters"][side], step["bytes"][side]
    if step.get("widths") and step.get("layers"):
        model.widths, model.layers = step["widths"][side], step["layers"][side]


def _scored(model: Model, step: dict, side: str, text: Text | None) -> None:
    if text and side in (step.get("perplexity") or {}):
        model.perplexity.setdefault(text, step["perplexity"][side])
    for task, scores in ((step.get("zero_shot") or {}).get(side) or {}).items():
        model.zero_shot.setdefault(task, scores)


def _same(model: Model, own: dict) -> bool:
    """Whether an evaluated model is one that is there already: by its path or name, or by what it scores."""
    if None not in (model.parameters, own.get("parameters")) and model.parameters != own["parameters"]:
        return False
    both = [
        (model.perplexity[text], value)
        for text, value in _perplexities(own).items()
        if model.perplexity.get(text) is not None and value is not None
    ]
    if any(abs(one - other) > 0.01 * one for one, other in both):
        return False
    names = [name for name in (own["name"], own.get("path")) if name]
    named = any(_same_path(path, name) for path in model.paths for name in names)
    return named or bool(both) and all(abs(one - other) <= 1e-5 * one for one, other in both)


def _same_path(one: str, other: str) -> bool:
    """Equal, or one is the end of the other, as of an absolute and a relative path."""
    one, other = PurePath(one).parts, PurePath(other).parts
    shorter = min(len(one), len(other))
    return shorter > 0 and one[-shorter:] == other[-shorter:]


def _perplexities(own: dict) -> dict[Text, float | None]:
    found = own.get("perplexity") or {}
    return {(data, told["windows"], told["max_seq_len"]): told["value"] for data, told in found.items()}


def _add_evaluation(model: Model, own: dict, evaluation: dict) -> None:
    model.parameters, model.bytes = own.get("parameters"), own.get("bytes")
    model.perplexity |= {text: v for text, v in _perplexities(own).items() if text not in model.perplexity}
    model.zero_shot |= own.get("zero_shot") or {}
    if own.get("widths") and not model.widths:
        model.widths, model.layers = own["widths"], own.get("layers")
    model.speed = own.get("speed")
    model.ratios = (evaluation.get("ratios") or {}).get(own["name"]) or {}
