"""Where a checkpoint comes from: the reports of the runs that made it, back to the first dense model.

A checkpoint's report.json brings along, as `made_from`, that of the checkpoint which the run started from. It is
checked as a whole when it is read: everything later may rely on it.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_pruner.errors import UsageError
from llm_pruner.files import check_regular, read_json
from llm_pruner.output import manifest
from llm_pruner.output.reports import CheckpointReport, Evaluation, PruneReport, RecoverReport, from_dict

# steps that a report tells of: JSON is nested once for each
LONGEST = 24
# a checkpoint of so many times the dense model's perplexity is of no use as it is
USELESS = 3.0
# steps that make no checkpoint
OTHERS = ("evaluate", "sweep", "pipeline")


def report_of(folder: str | Path) -> CheckpointReport | None:
    """Read the report.json in a checkpoint's folder; None where no run of this program made the checkpoint.

    Raises:
        UsageError: It is broken: no JSON, too large or too deep, of another schema version, or a field of it, or of a
            report in it, is illegal.
    """
    path = Path(folder, manifest.REPORT)
    if not os.path.lexists(path):
        return None
    check_regular(path, "the checkpoint's")
    try:
        found = read_json(path, "the checkpoint's")
    except UsageError:
        if _is_foreign(path):
            return None
        raise
    if not manifest.is_ours(found) or found.get("step") in OTHERS:
        return None
    report = from_dict(found, str(path))
    assert isinstance(report, CheckpointReport)
    return report


def _is_foreign(path: Path) -> bool:
    """Whether a file that is no JSON is nothing that a run of this program began to write."""
    with open(path, "rb") as file:
        return b"llm_pruner" not in file.read(2**26)


def _steps(report: CheckpointReport | None) -> Iterator[CheckpointReport]:
    while report:
        yield report
        report = report.made_from


def steps(report: CheckpointReport | None) -> list[CheckpointReport]:
    """Return the reports of the runs that made a checkpoint, the first one first."""
    return [*_steps(report)][::-1]


def teacher_of(report: CheckpointReport) -> str | None:
    """Return the model that a recovery learned from."""
    return report.teacher if isinstance(report, RecoverReport) else None


def base_of(report: CheckpointReport | None) -> str | None:
    """Return the first dense model, by the chain of reports; None where that does not tell."""
    if report is None:
        return None
    first = steps(report)[0]
    own = first.base_model or teacher_of(first)
    return own if own or isinstance(first, RecoverReport) else first.model


def dense_perplexity(report: CheckpointReport | None, evaluation: Evaluation | None) -> float | None:
    """Return the first dense model's perplexity on a text, in windows of the same length and number.

    None where no run of the chain has measured that: that of a pruned model is another thing.

    Args:
        report: Of the checkpoint.
        evaluation: The text.
    """
    if report is None or evaluation is None:
        return None
    first = steps(report)[0]
    if not _is_same_text(first.evaluation, evaluation):
        return None
    if isinstance(first, RecoverReport) or first.base_model not in (None, first.model):
        return first.dense_perplexity
    return perplexity_before(first)


def perplexity_before(report: CheckpointReport) -> float | None:
    """Return the perplexity before a run, by token of the model after it, so that the two can be compared.

    Where tokens went, that is the dense model's loss on the text, in bits per byte, for as many tokens as the text has
    afterwards: perplexity after ^ (bits before / bits after).

    Args:
        report: Of the run.
    """
    after, bits = report.perplexity.after, report.bits_per_byte
    if not bits.before or not bits.after:
        return report.perplexity.before
    if after is None or not math.isfinite(after) or not math.isfinite(bits.before):
        return None
    return after ** (bits.before / bits.after)


def warning(report: CheckpointReport) -> str | None:
    """Return what to tell about a checkpoint whose perplexity says that it is of no use, and what would help.

    Args:
        report: Of the run that made it.
    """
    dense, after = dense_perplexity(report, report.evaluation), report.perplexity.after
    if dense is None or after is None or not USELESS * dense < after < math.inf:
        return None
    return f"perplexity is {after / dense:,.1f} times the dense model's, too much to be useful: {report.remedy}"


def _is_same_text(one: Evaluation | None, other: Evaluation) -> bool:
    """By content where it is a file, whatever it is called; a data set by its name."""
    if one is None or (one.windows, one.max_seq_len) != (other.windows, other.max_seq_len):
        return False
    return one.digest == other.digest if one.digest or other.digest else one.data == other.data


def layers_of(report: CheckpointReport | None, count: int) -> list[int] | None:
    """Return the first dense model's layer that each layer of a checkpoint was; None where that is not known.

    Args:
        report: Of the checkpoint.
        count: How many layers it has.
    """
    kept: list[int] | None = None
    for step in steps(report):
        if not isinstance(step, PruneReport):
            continue
        layers = step.layers
        own = layers.kept or list(range(layers.before))
        if kept is not None and len(kept) != layers.before or len(own) != layers.after:
            return None
        kept = own if kept is None else [kept[layer] for layer in own]
    return kept if kept is not None and len(kept) == count else None


def told(report: CheckpointReport | None, model: str | None, evaluation: Evaluation | None) -> dict[str, Any]:
    """Return the fields of a run's report about the lineage of what it makes.

    Args:
        report: Of the checkpoint that it starts from, if there is one.
        model: The name of that checkpoint.
        evaluation: The text of the run's own perplexities.
    """
    return {
        "base_model": base_of(report) if report else model,
        "dense_perplexity": dense_perplexity(report, evaluation),
        "made_from": shortened(report),
    }


def shortened(report: CheckpointReport | None) -> CheckpointReport | None:
    """Return the report with at most LONGEST steps: the first are forgotten, but not which model was the dense one."""
    found: CheckpointReport | None = None
    for step in steps(report)[-LONGEST:]:
        found = replace(step, made_from=found)
    return found
