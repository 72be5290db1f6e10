"""Where a checkpoint comes from: the reports of the runs that made it, back to the first dense model.

A checkpoint's report.json brings along, as `made_from`, that of the checkpoint which the run started from. It is read
here alone, and checked as a whole: what comes later may rely on it.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_pruner.errors import UsageError, shown
from llm_pruner.files import check_regular, read_json
from llm_pruner.output.manifest import REPORT
from llm_pruner.output.report_schema import REQUIRED, RULES, STEPS
from llm_pruner.validation import check

LONGEST = 24  # steps that a report tells of: JSON is nested once for each
LARGEST = 1e300  # number in a report, so that what is drawn of it stays finite


def report_of(folder: str | Path) -> dict[str, Any] | None:
    """The report.json in a checkpoint's folder, None where there is none of a run that made the checkpoint.

    Raises:
        UsageError: It is broken: no JSON, too large or too deep, or a field of it, or of a report in it, is illegal.
    """
    path = Path(folder, REPORT)
    if not os.path.lexists(path):
        return None
    check_regular(path, "the checkpoint's")
    try:
        found = read_json(path, "the checkpoint's")
    except UsageError:
        if _is_foreign(path):
            return None
        raise
    if not _is_ours(found) or found.get("step") in ("evaluate", "sweep"):
        return None
    _check_numbers(found, path)
    where = str(path)
    for step in _steps(found):
        check(step, RULES, where, REQUIRED[kind_of(step)])
        where += ": made_from"
    return found


def _is_foreign(path: Path) -> bool:
    """Whether a file that is no JSON is nothing that a run of this program began to write."""
    with open(path, "rb") as file:
        return b"llm_pruner" not in file.read(2**26)


def _is_ours(found: Any) -> bool:
    versions = found.get("versions") if isinstance(found, dict) else None
    return isinstance(versions, dict) and "llm_pruner" in versions


def _check_numbers(report: Mapping[str, Any], path: Path) -> None:
    """UsageError for a number that is not finite, wherever it is."""
    level: list[tuple[str, Any]] = [("", report)]
    while level:
        inner = []
        for name, value in level:
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise UsageError(f"{path}: {name[2:]}: {shown(value)} must be a finite number")
            if isinstance(value, dict):
                inner += [
                    (f"{name}: {key}", own) for key, own in value.items() if isinstance(own, int | float | dict | list)
                ]
            elif isinstance(value, list):
                inner += [(name, own) for own in value if isinstance(own, int | float | dict | list)]
        level = inner


def kind_of(step: Mapping[str, Any]) -> str:
    """Of STEPS, which one a report is about. That of a pruning has no `step`."""
    own = step.get("step")
    return "prune" if "importance" in step or own not in STEPS else own


def _steps(report: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    while isinstance(report, dict):
        yield report
        report = report.get("made_from")


def steps(report: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The reports of the runs that made a checkpoint, the first one first."""
    return [*_steps(report)][::-1]


def base_of(report: Mapping[str, Any] | None) -> str | None:
    """The first dense model, by the chain of reports; None where that does not tell."""
    chain = steps(report)
    if not chain:
        return None
    first = chain[0]
    own = first.get("base_model") or first.get("teacher")
    return own if own or kind_of(first) == "recover" else first["model"]


def dense_perplexity(report: Mapping[str, Any] | None, evaluation: Mapping[str, Any]) -> float | None:
    """What the first dense model had on the text that `evaluation` tells of, in windows of the same length and number.

    None where no run of the chain has measured that: what a pruned model had is not it.
    """
    chain = steps(report)
    if not chain or not evaluation or not _is_same_text(chain[0].get("evaluation") or {}, evaluation):
        return None
    first = chain[0]
    if kind_of(first) == "recover" or first.get("base_model") not in (None, first["model"]):
        return first.get("dense_perplexity")
    return (first.get("perplexity") or {}).get("before")


def _is_same_text(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """By content where it is a file, whatever it is called; a data set by its name."""
    conditions = ("windows", "max_seq_len", "digest" if one.get("digest") and other.get("digest") else "data")
    same = all(one.get(name) == other.get(name) for name in conditions)
    return same and bool(one.get("digest")) == bool(other.get("digest"))


def layers_of(report: Mapping[str, Any] | None, count: int) -> list[int] | None:
    """The first dense model's layer that each of a checkpoint's `count` layers was; None where that is not known."""
    kept: list[int] | None = None
    for step in steps(report):
        layers = step.get("layers")
        if not layers:
            continue
        own = layers.get("kept") or list(range(layers["before"]))
        if kept is not None and len(kept) != layers["before"] or len(own) != layers["after"]:
            return None
        kept = own if kept is None else [kept[layer] for layer in own]
    return kept if kept is not None and len(kept) == count else None


def told(report: Mapping[str, Any] | None, model: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's report says of the lineage of what it makes.

    Args:
        report: Of the checkpoint that it starts from, if there is one.
        model: The name of that checkpoint.
        evaluation: What the run's own perplexities are measured on.
    """
    return {
        "base_model": base_of(report) if report else model,
        "dense_perplexity": dense_perplexity(report, evaluation),
        "made_from": shortened(report),
    }


def shortened(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The report with at most LONGEST steps: the first ones are forgotten, but not which model was the dense one."""
    found: dict[str, Any] | None = None
    for step in steps(report)[-LONGEST:]:
        found = {**step, "made_from": found}
    return found
