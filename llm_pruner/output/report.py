"""What a run tells afterwards: report.json, and from it the page and the model card."""

import json
import logging
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llm_pruner._version import __version__
from llm_pruner.errors import is_out_of_disk, redact
from llm_pruner.files import sync_all, write_text, write_whole
from llm_pruner.importance.selection import unit_scores
from llm_pruner.output import lineage, manifest
from llm_pruner.output.card import card
from llm_pruner.output.page import html

log = logging.getLogger(__name__)

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # that tell how scores are spread
PACKAGES = ("torch", "transformers", "torch-pruning", "accelerate", "datasets", "tokenizers")


class Stopwatch:
    """Seconds by phase: `with stopwatch("load"): …`; a phase entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str):
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def peak_memory() -> dict[str, int]:
    """The most memory this process has held so far, in bytes: `host`, and `device` where there is a GPU."""
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["device"] = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return peak


def size_of(model) -> tuple[int, int]:
    """(number of parameters, their bytes)"""
    parameters = [(p.numel(), p.element_size()) for p in model.parameters()]
    return sum(n for n, _ in parameters), sum(n * size for n, size in parameters)


def versions() -> dict[str, str]:
    found = {"llm_pruner": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command(argv: Sequence[str], program: str = "python prune_llm.py") -> str:
    """The command line as it can be typed again, without tokens."""
    return redact(f"{program} {shlex.join(argv)}".strip())


def conditions(options, seconds: dict, argv: Sequence[str], program: str = "python prune_llm.py") -> dict:
    """What every report ends with: seed, seconds by phase, memory, versions, the command and all its options."""
    return {
        "seed": options.seed,
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "peak_memory": peak_memory(),
        "versions": versions(),
        "command": command(argv, program),
        "options": {k: redact(v) if isinstance(v, str) else v for k, v in options.asdict().items()},
    }


def build(
    options, plan, new_config, model, perplexity: dict, evaluation: dict, calibration: dict, seconds: dict,
    argv: Sequence[str], origin: dict | None = None,
) -> dict:  # fmt: skip
    """The content of report.json. A width that differs between layers is a list with one for each. origin: the report
    of the checkpoint that was pruned, if it has one."""
    parameters, size = size_of(model)
    return {
        "model": redact(options.model),
        "model_type": {"before": plan.model_type, "after": new_config.model_type},
        "parameters": {"before": plan.parameters_before, "after": parameters},
        "decoder_parameters": {"before": plan.decoder_before, "after": plan.decoder_after},
        "bytes": {"before": plan.bytes_before, "after": size},
        "perplexity": finite(perplexity),
        "evaluation": evaluation,
        "calibration": {name: redact(v) if isinstance(v, str) else v for name, v in calibration.items()},
        "widths": {"before": plan.before.by_field(), "after": plan.widths_after()},
        "layers": {"before": plan.num_layers_before or len(plan.after), "after": len(plan.after), "kept": plan.layers},
        "removed": {name: round(share, 6) for name, share in plan.removed().items()},
        "importance": plan.importance,
        "order": plan.order,
        "compensate": plan.compensate,
        "masked": options.mask_only,
        **lineage.told(origin, redact(options.model), evaluation),
        **conditions(options, seconds, argv),
        "seed": plan.seed,
    }


def spread(scores: Mapping, groups: Iterable) -> dict[str, list[list[float]]]:
    """{name of the width: QUANTILES of its units' scores, a list per layer}, of the `groups` that were scored."""
    import torch

    found: dict[str, list[list[float]]] = {}
    for group in groups:
        if group.name in scores:
            values = unit_scores(scores[group.name].double(), group.units)
            quantiles = values.quantile(torch.tensor(QUANTILES, dtype=values.dtype, device=values.device))
            found.setdefault(group.axis.field, []).append([float(f"{value:.6g}") for value in quantiles.tolist()])
    return found


def finite(value):
    """`value`, whatever it is made of, with None for each number that JSON cannot hold."""
    if isinstance(value, dict):
        return {name: finite(own) for name, own in value.items()}
    if isinstance(value, list | tuple):
        return [finite(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, report: dict) -> None:
    """Whatever is in the report: a value of an odd type is no reason to lose what it is about."""
    path.write_text(json.dumps(finite(report), indent=2, allow_nan=False, default=str) + "\n", encoding="utf-8")


def write(folder: Path, report: dict) -> None:
    """report.json, report.html and the model card of a checkpoint."""
    traceback = bool((report.get("options") or {}).get("traceback"))
    draw(folder / "README.md", lambda: card(report), traceback)
    draw(folder / "report.html", lambda: html.page([report]), traceback)
    report["files"] = manifest.listed(folder, but=(manifest.REPORT,))  # what another run may replace
    sync_all(folder)  # first: once the report is on the disk, so is all that it lists
    write_whole(folder / manifest.REPORT, lambda path: write_json(path, report))


def draw(path: Path, content: Callable[[], str], traceback: bool = False) -> bool:
    """Writes a page or a card, and returns whether it is there: one that cannot be drawn costs a warning, not the work
    of hours. A full disk is told as what it is.

    Args:
        path: The file.
        content: Returns what goes into it.
        traceback: Whether to show where it failed.

    Raises:
        OSError: The disk is full.
    """
    try:
        write_text(path, content())
        return True
    except Exception as error:
        if is_out_of_disk(error):
            raise
        reason = (str(error).splitlines() or [""])[0]
        log.warning(
            "%s could not be drawn (%s); everything else is there", path.name,
            f"{type(error).__name__}{', ' * bool(reason)}{reason}", exc_info=traceback,
        )  # fmt: skip
        return False
