"""The one way in which a run saves: staged, written, verified, reported, published."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from llm_pruner.console import log
from llm_pruner.errors import RunError, is_out_of_disk
from llm_pruner.files import sync_all, write_json, write_text
from llm_pruner.output import checkpoint, lineage, manifest
from llm_pruner.output.card import card
from llm_pruner.output.conditions import Stopwatch
from llm_pruner.output.exporters import Exporter
from llm_pruner.output.page import page
from llm_pruner.output.reports import CheckpointReport, Report

logger = logging.getLogger(__name__)
Made = TypeVar("Made", bound=CheckpointReport)


def save(
    model: Any, tokenizer: Any, target: Path, source: str, report: Callable[[], Made], *,
    finite: Any = None, overwrite: bool = False, stopwatch: Stopwatch, note: str = "",
    export: Mapping[str, Exporter] | None = None,
) -> Made:  # fmt: skip
    """Save a checkpoint with its report, page and card, and return the report.

    Args:
        model: The model.
        tokenizer: Its tokenizer, or None.
        target: The checkpoint's folder.
        source: The folder of the model that it was made from, for the tokenizer's files.
        report: Returns the report, once everything in it is known: the seconds of saving too.
        finite: Where the logits have to be finite, see `checkpoint.verify`.
        overwrite: Whether a checkpoint of this program may be replaced.
        stopwatch: Of the run.
        note: About loading the checkpoint, for the last line.
        export: {name: exporter}, of other formats that are written into folders of these names.

    Raises:
        RunError: Writing fails, or the place is taken.
        VerificationError: The checkpoint does not reload to the same logits.
    """
    with checkpoint.staged(target, overwrite) as staging:
        log(f"saving {target}")
        with stopwatch("save"):
            checkpoint.write(model, tokenizer, staging, source)
        for name, exporter in (export or {}).items():
            (staging / name).mkdir()
            with stopwatch("export"):
                exporter(model, tokenizer, staging / name)
        with stopwatch("verify"):
            checkpoint.verify(model, staging, finite)
        made = write_report(staging, report())
    log(f"saved {target} (reloaded in a fresh process: same logits{note})")
    return warned(made)


def warned(report: Made) -> Made:
    """Return the report, after showing its warning where it has one.

    Args:
        report: Of a run.
    """
    if useless := lineage.warning(report):
        log(f"warning: {useless}")
    return report


def write_report(folder: Path, report: Made) -> Made:
    """Write report.json, report.html and the model card of a checkpoint.

    Args:
        folder: The checkpoint.
        report: Of the run that made it.

    Returns:
        The report, with the list of the checkpoint's files.
    """
    traceback = bool(report.options.get("traceback"))
    draw(folder / "README.md", lambda: card(report), traceback)
    draw(folder / "report.html", lambda: page([report]), traceback)
    # what another run may replace
    report = replace(report, files=manifest.listed(folder, but=(manifest.REPORT,)))
    # first: once the report is on the disk, so is all that it lists
    sync_all(folder)
    write_json(folder / manifest.REPORT, report.to_dict(), default=str)
    return report


def save_report(path: Path, report: Report) -> None:
    """Write a report as JSON, whole or not at all. A value of an odd type is no reason to lose it.

    Args:
        path: The file.
        report: The report.

    Raises:
        RunError: The file cannot be written.
    """
    try:
        write_json(path, report.to_dict(), default=str)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error


def draw(path: Path, content: Callable[[], str], traceback: bool = False) -> bool:
    """Write a page or a card; one that cannot be drawn costs a warning, not the work of hours.

    Args:
        path: The file.
        content: Returns its content.
        traceback: Whether to show where it failed.

    Returns:
        Whether the file is there.

    Raises:
        OSError: The disk is full.
    """
    try:
        write_text(path, content())
        return True
    except Exception as error:
        if is_out_of_disk(error):
            raise
        reason = ", ".join([type(error).__name__, *str(error).splitlines()[:1]])
        logger.warning("%s could not be drawn (%s); everything else is there", path.name, reason, exc_info=traceback)
        return False
