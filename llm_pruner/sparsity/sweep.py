"""Models × patterns: a run for each, a JSON for each, one table.

A run whose JSON is there, made of the same inputs, is not done again.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from llm_pruner._version import __version__
from llm_pruner.calibration.mixtures import listed, text_key
from llm_pruner.config.options import fields_of, read_yaml, typed
from llm_pruner.config.sparsify import PROGRAM, SparsifyOptions, parts, validate
from llm_pruner.console import aligned, log
from llm_pruner.errors import PrunerError, RunError, UsageError, is_out_of_memory, redact
from llm_pruner.evaluation.scores import Scores
from llm_pruner.evaluation.zero_shot import mean_accuracy
from llm_pruner.files import checkpoint_digest, key_of, set_aside, text_digest
from llm_pruner.model import loading
from llm_pruner.output import places, reports
from llm_pruner.output.conditions import command, versions
from llm_pruner.output.reports import SparsifyReport, SweepReport, SweepRun
from llm_pruner.output.saving import save_report
from llm_pruner.sparsity.run import run_one

# What is the sweep's, not its patterns'; and what the dense model's scores depend on.
OWN = ("model", "patterns", "folder", "save_model", "report", "overwrite", "traceback", "config")
SCORED = (
    "dtype", "eval_data", "max_seq_len", "eval_stride", "tasks", "num_fewshot", "apply_chat_template", "limit", "seed",
)  # fmt: skip
TEXTS = ("calibration_data", "eval_data", "tasks")
TABLE, TABLE_TEXT = "sweep.json", "sweep.md"


def sweep(options: SparsifyOptions, argv: Sequence[str] = ()) -> SweepReport:
    """Run every pattern on every model.

    Raises:
        RunError: At the end, when a run failed.
    """
    folder = _folder(options)
    models = {_name(model, options.model): model for model in options.model}
    prints = {name: _fingerprint(model, options.revision) for name, model in models.items()}
    patterns = _patterns(options)
    _check_free(folder, [f"{name}--{pattern}.json" for name in models for pattern in patterns], options, models)
    runs, failures = [], []
    for name, model in models.items():
        # the dense model's scores, by what they were measured with
        known: dict[str, Scores] = {}
        for pattern, own in patterns.items():
            path = folder / f"{name}--{pattern}.json"
            one = replace(own, model=(model,))
            key, scored = _key(one, prints[name]), repr([getattr(one, field) for field in SCORED])
            made = None if options.overwrite else _done(path, key)
            if made is None:
                log(f"{name}, {pattern}")
                try:
                    made = replace(run_one(one, argv, known.get(scored)), key=key)
                except Exception as error:
                    if not isinstance(error, PrunerError) and not is_out_of_memory(error):
                        raise
                    failures.append(redact(f"{name}, {pattern}: {' '.join(str(error).split())}"))
                    log(f"failed: {error}")
                    continue
                save_report(path, made)
            else:
                log(f"{name}, {pattern}: {path} exists and its inputs have not changed; skipped")
            known[scored] = Scores(made.perplexity.before, made.zero_shot.before)
            runs.append(_row(name, pattern, path.name, made))
    if not runs:
        raise RunError(f"every run failed; the first: {failures[0]}")
    rows = table(runs)
    log("\n" + aligned(rows))
    summary = SweepReport(runs=runs, failures=failures, versions=versions(), command=command(argv, PROGRAM))
    save_report(folder / TABLE, summary)
    places.write_files({folder / TABLE_TEXT: partial(_write, rows=rows)})
    log(f"saved {folder / TABLE} and {folder / TABLE_TEXT}")
    if failures:
        raise RunError(f"{len(failures)} of {len(failures) + len(runs)} runs failed; the first: {failures[0]}")
    return summary


def _row(model: str, pattern: str, file: str, made: SparsifyReport) -> SweepRun:
    seconds = round(sum(made.seconds.values()), 1)
    return SweepRun(model, pattern, file, made.label, made.kept, made.perplexity, made.zero_shot, seconds)


def table(runs: Sequence[SweepRun]) -> list[list[str]]:
    """Return a row for each pattern, for each model perplexity and, where there are tasks, the mean of their scores."""
    models = list(dict.fromkeys(run.model for run in runs))
    found = {(run.model, run.pattern): run for run in runs}
    labels = {run.pattern: run.label for run in runs}
    asked = any(run.zero_shot.before or run.zero_shot.after for run in runs)
    rows = [["", *(title for model in models for title in ((model, f"{model}, tasks") if asked else (model,)))]]
    first = {model: next(run for run in runs if run.model == model) for model in models}
    rows.append(["dense", *(cell for model in models for cell in _cells(first[model], "before", asked))])
    for pattern, label in labels.items():
        cells = [_cells(found.get((model, pattern)), "after", asked) for model in models]
        rows.append([label, *(cell for own in cells for cell in own)])
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a table in Markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.write_text(markdown(rows), encoding="utf-8")


def _cells(run: SweepRun | None, side: str, asked: bool) -> list[str]:
    value = getattr(run.perplexity, side) if run else None
    missing = "failed" if run is None else "-" if value is None else "not finite"
    cells = [f"{value:,.2f}" if value is not None and math.isfinite(value) else missing]
    if asked:
        mean = mean_accuracy((getattr(run.zero_shot, side) if run else None) or {})
        cells.append("-" if mean is None else f"{100 * mean:.1f}")
    return cells


def _folder(options: SparsifyOptions) -> Path:
    assert options.folder, "validate() asks for it"
    folder = Path(options.folder).expanduser()
    models = {f"model {model}": Path(loading.resolve(model)) for model in options.model}
    places.check_apart("folder", folder, {name: path for name, path in models.items() if path.is_dir()})
    if folder.is_file():
        raise UsageError(f"`folder` {folder} is a file; name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"`folder` {folder}: {error.strerror}") from error
    return folder


def _check_free(folder: Path, names: Sequence[str], options: SparsifyOptions, models: Mapping[str, str]) -> None:
    """Raise a UsageError where a report, or the table, would go to the place of an input.

    A file there that is no report of a sweep, because it is damaged or somebody else's, is set aside.
    """
    inputs = places.inputs_of(options, {name: loading.resolve(model) for name, model in models.items()})
    for name in (*names, TABLE_TEXT, TABLE):
        path = folder / name
        places.check_file("folder", path, inputs)
        ours = (folder / TABLE).exists() if name == TABLE_TEXT else places.is_report(path)
        if path.exists() and not ours:
            log(f"note: {path} is no report of a sweep; set aside as {set_aside(path).name}")


def _name(model: str, models: Sequence[str]) -> str:
    """The last part of its path, where that is its alone."""
    short = [Path(one).name or one for one in models]
    own = Path(model).name or model
    return redact(own if short.count(own) == 1 else model.strip("/.").replace("/", "-"))


def _patterns(options: SparsifyOptions) -> dict[str, SparsifyOptions]:
    """{name of the pattern: options of its runs}. UsageError for a file that is none, or that two patterns share."""
    known = fields_of(SparsifyOptions)
    found: dict[str, SparsifyOptions] = {}
    shared = {name: getattr(options, name) for name in known if name not in ("patterns", "folder")}
    for file in options.patterns or ():
        values = read_yaml(file, known)
        if refused := [name for name in OWN if name in values]:
            raise UsageError(f"{file}: {refused[0]} belongs to the sweep, not to one of its patterns")
        values = {name: typed(known[name], value) for name, value in values.items() if name not in options.flags}
        if "targets" in values:
            values["targets"] = parts(values["targets"])
        own = SparsifyOptions(**{**shared, **values, "model": options.model[:1]})
        try:
            validate(own)
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from None
        name = Path(file).stem
        if name in found:
            raise UsageError(f"two patterns are called {name}; rename one of the files")
        found[name] = own
    return found


def _fingerprint(model: str, revision: str | None) -> str:
    source = loading.resolve(model)
    return checkpoint_digest(source, loading.fetch(source, revision))


def _key(options: SparsifyOptions, model: str) -> str:
    """Of everything that a run's result depends on."""
    inputs = {name: value for name, value in options.asdict().items() if name not in OWN}
    for name in TEXTS:
        given = inputs[name]
        digest = text_key if name in places.MIXED else text_digest
        inputs[name] = [digest(one) for one in listed(given)]
    inputs |= {"model": model, "version": __version__}
    return key_of(inputs)


def _done(path: Path, key: str) -> SparsifyReport | None:
    """The run's report where it is there, whole, and was made of the same inputs."""
    if not places.is_report(path):
        return None
    try:
        made = reports.read(path)
    except UsageError as error:
        log(f"note: {error}; measured again")
        return None
    return made if isinstance(made, SparsifyReport) and made.key == key else None
