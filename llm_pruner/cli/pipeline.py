"""prune → recover → evaluate, each in a process of its own, each only if its output is not there already.

Beside the outputs the folder keeps what each stage was run with (<stage>.yaml), what it said (<stage>.log) and
pipeline.json: from which inputs every output was made.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from llm_pruner import validation
from llm_pruner._version import __version__
from llm_pruner.calibration.mixtures import listed, text_key
from llm_pruner.cli.stages import DECIDED, EVALUATION, PRUNED, RECOVERED, Stage, in_order, stage_options, validate
from llm_pruner.config.pipeline import PROGRAM, STAGES, PipelineOptions
from llm_pruner.console import aligned, log
from llm_pruner.errors import PlanError, RunError, UsageError, VerificationError
from llm_pruner.files import (
    checkpoint_digest,
    fingerprint,
    key_of,
    read_state,
    set_aside,
    text_digest,
    write_json,
    write_state,
    write_text,
)
from llm_pruner.model import loading
from llm_pruner.output import manifest, reports
from llm_pruner.output.conditions import command as typed
from llm_pruner.output.conditions import versions
from llm_pruner.output.page import page
from llm_pruner.output.places import MIXED, check_apart, inputs_of
from llm_pruner.output.reports import CheckpointReport, EvaluateReport, PipelineReport, RecoverReport
from llm_pruner.output.reports import Stage as Ran
from llm_pruner.output.saving import draw

STATE = "pipeline.json"
OUTPUT = {"prune": PRUNED, "recover": RECOVERED, "evaluate": EVALUATION}
STATE_FIELDS = {"stages": validation.mapping, "files": validation.list_of(validation.text)}
OWN = ("summary.json", "report.html", *(f"{stage}.{kind}" for stage in STAGES for kind in ("yaml", "log")))
TEXTS = ("data", "calibration_data", "vocab_data", "eval_data", "scores", "plan", "tasks")
FAILURES = {1: RunError, 2: UsageError, 3: PlanError, 4: VerificationError}


def run(options: PipelineOptions, argv: Sequence[str] = ()) -> PipelineReport:
    """Do what is not done yet and return the summary. Every failure is a PrunerError with its stage's exit code."""
    validate(options)
    source = loading.resolve(options.model)
    loading.check_family(source)
    folder = _folder(options, source)
    asked = {stage: values[0] for stage in STAGES if (values := stage_options(options, stage))}
    done = in_order([_stage(name, values, folder, options, source) for name, values in asked.items()])
    return _summary(folder, [Ran(one.name, one.skipped, one.seconds) for one in done], options, argv)


def _stage(name: str, values: dict, folder: Path, options: PipelineOptions, source: str) -> Stage:
    """A stage, done where its output is there, whole, and made from the same inputs."""

    def is_done() -> bool:
        done = _is_done(folder, name, _key(name, values, folder, options, source))
        if done:
            log(f"{name}: {folder / OUTPUT[name]} exists and its inputs have not changed; skipped")
        return done

    def run() -> None:
        key = _key(name, values, folder, options, source)
        _mark(folder, name, None)
        _run_stage(name, values, folder, options)
        _mark(folder, name, key)

    return Stage(name, run, is_done)


def _folder(options: PipelineOptions, source: str) -> Path:
    """The pipeline's folder. UsageError where it cannot be written, or would write over what is not its own."""
    assert options.folder, "validate() asks for it"
    folder = Path(options.folder).expanduser()
    check_apart("folder", folder, {"model": Path(source)})
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"`folder` {folder} is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not any(folder.glob(f"{STATE}*")):
        raise UsageError(f"`folder` {folder} holds something else than a pipeline; name another")
    inputs = inputs_of(options, {"model": source})
    for stage in STAGES:
        if asked := stage_options(options, stage):
            read = inputs_of(asked[1], {})
            inputs |= {f"{stage}: {name}": path for name, path in read.items() if name in TEXTS}
    for name in (*OUTPUT.values(), *OWN):
        check_apart("folder", folder / name, inputs, replaced=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        state = _state(folder)
        known = (folder / STATE).is_file()
        for other in [name for name in OWN if os.path.lexists(folder / name) and name not in state["files"]]:
            if known:
                raise UsageError(f"`folder` {folder} holds {other}, which no pipeline wrote there; move it away")
            # nobody knows any more whose it is
            set_aside(folder / other)
        write_state(folder / STATE, state)
    except OSError as error:
        raise UsageError(f"`folder` {folder} cannot be written: {error.strerror}") from error
    return folder


def _key(stage: str, values: dict, folder: Path, options: PipelineOptions, source: str) -> str:
    """What the stage's output follows from: options, and the content of models and files that it reads."""
    parts = {name: value for name, value in values.items() if name not in DECIDED}
    for name in TEXTS:
        if name in parts:
            digest = text_key if name in MIXED else text_digest
            parts[name] = [digest(one) for one in listed(parts[name])]
    models = {
        "prune": [],
        "recover": [PRUNED],
        "evaluate": [PRUNED, RECOVERED][: 2 if options.recover is not None else 1],
    }
    parts["inputs"] = [options.model, checkpoint_digest(source, loading.fetch(source))]
    parts["inputs"] += [checkpoint_digest(str(folder / name), folder / name) for name in models[stage]]
    parts["version"] = __version__
    return key_of(parts)


def _state(folder: Path) -> dict:
    """stages: {stage: key of its output and, of a single file, its digest}. files: those in OWN that were written."""
    return {"stages": {}, "files": []} | read_state(folder / STATE, STATE_FIELDS)


def _is_done(folder: Path, stage: str, key: str) -> bool:
    """Whether the stage's output is there, whole, and made from the same inputs."""
    known = _state(folder)["stages"].get(stage) or {}
    if known.get("key") != key:
        return False
    output = folder / OUTPUT[stage]
    if stage == "evaluate":
        return output.is_file() and fingerprint(output) == known.get("digest")
    return output.is_dir() and manifest.is_whole_checkpoint(output)


def _mark(folder: Path, stage: str, key: str | None) -> None:
    """Keeps that the stage is done, or (None) is not."""
    state, output = _state(folder), folder / OUTPUT[stage]
    digest = fingerprint(output) if key and output.is_file() else None
    state["stages"][stage] = {"key": key, "digest": digest}
    write_state(folder / STATE, state)


def _keep_own(folder: Path, name: str, content: str) -> None:
    """Writes one of the pipeline's own files."""
    write_text(_own(folder, name), content)


def _own(folder: Path, name: str) -> Path:
    """Where one of the pipeline's own files goes, which is then known as such."""
    state = _state(folder)
    if name not in state["files"]:
        write_state(folder / STATE, state | {"files": [*state["files"], name]})
    return folder / name


def _run_stage(stage: str, values: dict, folder: Path, options: PipelineOptions) -> None:
    """The stage's own command, its output on the terminal and in its log. The error of its exit code."""
    import yaml

    config, log_file = folder / f"{stage}.yaml", folder / f"{stage}.log"
    _keep_own(folder, config.name, yaml.safe_dump(values, sort_keys=False))
    _keep_own(folder, log_file.name, "")
    start = shlex.split(options.launcher) if options.launcher and stage == "recover" else [sys.executable]
    command = [
        *start,
        "-m",
        "llm_pruner",
        stage,
        "--config",
        str(config),
        *(["--traceback"] if options.traceback else []),
    ]
    log(f"{stage}: {shlex.join(command)}")
    last = ""
    with open(log_file, "w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
        )
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                # a full disk ends the log, not the stage
                with contextlib.suppress(OSError):
                    file.write(line)
                    file.flush()
                if line.strip():
                    last = line.strip().rsplit("\r", 1)[-1]
            code = process.wait()
        except BaseException as stop:
            # Ctrl-C has reached the stage too: let it end as it does
            if not isinstance(stop, KeyboardInterrupt):
                process.terminate()
            try:
                process.wait(timeout=30)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
            raise
    if code in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if code:
        why = last.partition(" error: ")[2] or last
        raise FAILURES.get(code, RunError)(
            f"{stage} failed ({why}); its log is {log_file}, the same command goes on there"
        )


def _summary(folder: Path, stages: list[Ran], options: PipelineOptions, argv: Sequence[str]) -> PipelineReport:
    """summary.json, report.html and a table on the terminal, from the stages' own reports."""
    made: dict[str, CheckpointReport] = {}
    evaluation = None
    for one in stages:
        path = folder / OUTPUT[one.stage]
        found = reports.read(path if path.suffix else path / manifest.REPORT)
        if isinstance(found, EvaluateReport):
            evaluation = found
        elif isinstance(found, CheckpointReport):
            made[one.stage] = found
    recovery = made.get("recover")
    summary = PipelineReport(
        model=options.model,
        stages=stages,
        parameters={stage: own.parameters.after for stage, own in made.items()},
        perplexity={stage: own.perplexity for stage, own in made.items()},
        recovered_share=recovery.recovered_share if isinstance(recovery, RecoverReport) else None,
        zero_shot={model.name: model.zero_shot for model in evaluation.models} if evaluation else {},
        speed=evaluation.ratios if evaluation else {},
        versions=versions(),
        command=typed(argv, PROGRAM),
    )
    log(f"\n{aligned(_rows(summary))}")
    write_json(_own(folder, "summary.json"), summary.to_dict(), default=str)
    file = _own(folder, "report.html")
    drawn = draw(file, lambda: page([*made.values()], evaluation), options.traceback)
    page_too = f" and {file}" if drawn else ""
    log(f"saved {folder / 'summary.json'}{page_too}")
    return summary


def _rows(summary: PipelineReport) -> list[list[str]]:
    """The table: a row for each stage."""
    rows = [["", "parameters", "perplexity before", "perplexity after", "seconds"]]
    for one in summary.stages:
        cells = ["", "", ""]
        if perplexity := summary.perplexity.get(one.stage):
            values = (perplexity.before, perplexity.after)
            cells = [f"{summary.parameters[one.stage]:,}", *(f"{v:,.2f}" if v is not None else "" for v in values)]
        rows.append([one.stage, *cells, "skipped" if one.skipped else f"{one.seconds:,.0f}"])
    return rows
