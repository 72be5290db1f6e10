"""The stages of a pipeline: run in order, and read as their own commands would read them. Imports nothing heavy."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llm_pruner.cli import requests
from llm_pruner.config import evaluate, recover
from llm_pruner.config.evaluate import EvaluateOptions
from llm_pruner.config.options import check_values, fields_of, read_yaml, typed
from llm_pruner.config.pipeline import STAGES, PipelineOptions
from llm_pruner.config.prune import FIELDS
from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import UsageError

KNOWN = {"prune": FIELDS, "recover": fields_of(RecoverOptions), "evaluate": fields_of(EvaluateOptions)}
# by the pipeline
DECIDED = (
    "model", "save_model", "overwrite", "report", "traceback", "work_dir", "dry_run", "no_save", "dense", "recover",
    "revision", "config",
)  # fmt: skip
PRUNED, RECOVERED, EVALUATION = "pruned", "recovered", "evaluation.json"


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Attributes:
        name: prune, recover or evaluate.
        run: Does it, and returns its report if it has one at hand.
        is_done: Whether its output is there already, made from the same inputs.
    """

    name: str
    run: Callable[[], Any]
    is_done: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Done:
    """What came of a stage. seconds: 0 where it was skipped."""

    name: str
    skipped: bool
    seconds: float = 0.0
    report: Any = None


def in_order(stages: Sequence[Stage]) -> list[Done]:
    """Run the stages one after the other, those that are done not again."""
    done = []
    for stage in stages:
        if stage.is_done():
            done.append(Done(stage.name, skipped=True))
            continue
        started = time.monotonic()
        report = stage.run()
        done.append(Done(stage.name, False, round(time.monotonic() - started, 1), report))
    return done


def resolve(flags: dict[str, Any], yaml_file: str | None = None) -> PipelineOptions:
    """Return the options: defaults < YAML < flags. UsageError for anything that cannot be meant, in any stage."""
    known = fields_of(PipelineOptions)
    if not yaml_file:
        raise UsageError("which stages? give `config`, such as configs/pipeline_amp.yaml")
    values = read_yaml(yaml_file, known | KNOWN) | flags
    options = PipelineOptions(
        **{name: value if name in STAGES else typed(known[name], value) for name, value in values.items()}
    )
    validate(options)
    return options


def validate(options: PipelineOptions) -> None:
    """Raise a UsageError for what no stage could be run with."""
    check_values(options)
    if not options.model:
        raise UsageError("no model: give `model`, a folder, a hub id or demo")
    if not options.folder:
        raise UsageError("where to? give `folder`")
    if options.prune is None:
        raise UsageError("a pipeline starts with a `prune:` section")
    for stage in STAGES:
        if decided := [name for name in getattr(options, stage) or {} if name in DECIDED]:
            raise UsageError(f"{stage}: {decided[0]} is decided by the pipeline; leave it out")
        stage_options(options, stage)
    if (options.prune or {}).get("further_ratios"):
        raise UsageError("prune: a pipeline has one checkpoint behind another; leave out further_ratios")


def stage_options(options: PipelineOptions, stage: str):
    """Return (values, options) of a stage as its own command would read them; None for one that is not asked for."""
    section = getattr(options, stage)
    if section is None:
        return None
    assert options.folder, "validate() asks for it"
    folder = options.folder.rstrip("/")
    values: dict[str, Any] = {"model": options.model}
    last = RECOVERED if options.recover is not None else PRUNED
    if stage == "prune":
        values |= {"save_model": f"{folder}/{PRUNED}", "overwrite": True}
        if section.get("method") == "reconstruct":
            values["work_dir"] = f"{folder}/{PRUNED}.unfinished"
    elif stage == "recover":
        values = {"model": f"{folder}/{PRUNED}", "save_model": f"{folder}/{RECOVERED}", "overwrite": True}
        if section.get("method") == "distil":
            values["teacher"] = options.model
    else:
        checkpoints = [PRUNED] if last == PRUNED else [PRUNED, RECOVERED]
        values = {"dense": options.model, "model": [f"{folder}/{name}" for name in checkpoints]}
        values |= {"report": f"{folder}/{EVALUATION}", "overwrite": True}
    for name in ("dtype", "device", "seed", "eval_data", "max_seq_len"):
        value = getattr(options, name)
        if value is not None and name in KNOWN[stage]:
            values[name] = value
    values |= section
    resolver = {"prune": requests.resolve, "recover": recover.resolve, "evaluate": evaluate.resolve}[stage]
    try:
        return values, resolver(dict(values))
    except UsageError as error:
        raise UsageError(f"{stage}: {error}") from None
