"""Sparse inputs or weights, in a straight line.

model → texts → perplexity → calibration text → sparse → perplexity → staged, verified, published → report
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.mixtures import Drawn, asked_texts
from llm_pruner.calibration.prompts import draw, written_by
from llm_pruner.calibration.windows import window_length
from llm_pruner.config import recipe as names
from llm_pruner.config.sparsify import PROGRAM, SparsifyOptions
from llm_pruner.console import log, quiet
from llm_pruner.errors import RunError, redact
from llm_pruner.evaluation.scores import Measurement, Scores, compared, text_to_score, windows_of
from llm_pruner.evaluation.tasks import check_tasks
from llm_pruner.model import loading
from llm_pruner.model.families import family_of, stock_type
from llm_pruner.model.size import size_of
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output import checkpoint, lineage, places
from llm_pruner.output.conditions import Stopwatch, conditions
from llm_pruner.output.exporters import exporters_called
from llm_pruner.output.reports import Calibration, CheckpointReport, Evaluation, Sides, SparsifyReport
from llm_pruner.output.saving import save, save_report, warned
from llm_pruner.sparsity.columns import by_columns
from llm_pruner.sparsity.learn import Learning
from llm_pruner.sparsity.linear import sparse_layers
from llm_pruner.sparsity.saved import mark
from llm_pruner.sparsity.sparsify import sparsify
from llm_pruner.sparsity.targets import targeted

# tokens that the share of what is kept is counted on
WATCHED = 4096


@dataclass(frozen=True)
class _Places:
    """Where a run reads and writes."""

    source: str
    target: Path | None
    report: Path | None


@dataclass(frozen=True)
class _Inputs:
    """What a run reads, but the weights."""

    config: Any
    origin: CheckpointReport | None
    tokenizer: Any
    tasks: list[str]
    windows: Any
    evaluation: Evaluation | None
    texts: str | tuple[str, ...] | None
    drawn: Drawn | None


def run_one(options: SparsifyOptions, argv: Sequence[str] = (), known: Scores | None = None) -> SparsifyReport:
    """Apply one recipe to one model.

    Args:
        options: What to do.
        argv: The arguments of the command as they were typed, for the report.
        known: The dense model's scores, where they were measured before.

    Returns:
        The report.

    Raises:
        PrunerError: Whatever fails, with its exit code.
    """
    recipe, name = options.recipe, options.model[0]
    stopwatch = Stopwatch()
    where = _places(options)
    exporters_called(options.export)
    device = None if options.device_map else loading.pick_device(options.device)
    read = _inputs(options, where.source, stopwatch)
    config, tokenizer, windows, evaluation = read.config, read.tokenizer, read.windows, read.evaluation
    with stopwatch("load"):
        folder = loading.fetch(where.source, options.revision)
        model = loading.load_model(folder, config, options.dtype, device, options.device_map)
    finite = checkpoint.finite_logits(model) if where.target else None
    if where.target:
        places.check_disk(where.target, size_of(model).bytes)
    measurement = Measurement(
        windows, evaluation, read.tasks, options.batch_size, options.num_fewshot, options.apply_chat_template,
        options.limit, options.seed,
    )  # fmt: skip
    before = known or measurement.of(model, tokenizer, "before", stopwatch)
    drawn = read.drawn and written_by(model, read.drawn)
    prompts = drawn.prompts if drawn else None
    told = _shape(model) | {"evaluation": evaluation, "calibration": _told(read.texts, options, drawn)}
    with stopwatch("sparsify"):
        learned = sparsify(model, recipe, prompts, Learning(epochs=options.epochs, seed=options.seed))
        if where.target and recipe.sparse == names.ACTIVATIONS:
            _as_loaded(model)
    told["kept"] = measured_share(model, recipe, windows if windows is not None else prompts)
    scores = compared(before, measurement.of(model, tokenizer, "after", stopwatch))
    told |= scores | lineage.told(read.origin, redact(name), evaluation) | {"learned": learned}

    def report() -> SparsifyReport:
        under = conditions(options, stopwatch.seconds, argv, PROGRAM)
        return SparsifyReport(model=redact(name), label=recipe.label, sparsity=recipe.asdict(), **told, **under)

    if where.target:
        made = _saved(where.target, model, tokenizer, folder, options, report, finite, stopwatch)
    else:
        made = warned(report())
    if where.report:
        save_report(where.report, made)
        log(f"saved {where.report}")
    return made


def _inputs(options: SparsifyOptions, source: str, stopwatch: Stopwatch) -> _Inputs:
    """All that a run reads but the weights. PrunerError where something is missing or cannot be made sparse."""
    recipe, name = options.recipe, options.model[0]
    eval_data = text_to_score(options.eval_data, name)
    texts = asked_texts(options.calibration_data, name, "wikitext2") if recipe.needs_text else None
    tasks = check_tasks(options.tasks) if options.tasks else []
    config = loading.load_config(source, options.revision, any_family=True)
    loading.check_dense(name, getattr(config, "quantization_config", None), "start from the dense model")
    family_of(stock_type(config.model_type))
    quiet()
    log(f"sparse {recipe.sparse}: {recipe.label}")
    with stopwatch("data"):
        folder = loading.fetch(source, options.revision, weights=False)
        origin = lineage.report_of(folder)
        tokenizer = load_tokenizer(folder, needed=bool(eval_data or texts or tasks))
        if tokenizer is None and (eval_data or texts or tasks):
            raise RunError(f"{name} has no tokenizer, so no text can be read: neither to score nor to calibrate")
        windows, evaluation = windows_of(eval_data, name, tokenizer, config, options.max_seq_len, options.eval_stride)
        drawn = _drawn(texts, options, tokenizer, config)
    return _Inputs(config, origin, tokenizer, tasks, windows, evaluation, texts, drawn)


def _places(options: SparsifyOptions) -> _Places:
    """UsageError where an output cannot be written."""
    source = loading.resolve(options.model[0])
    target = Path(options.save_model).expanduser() if options.save_model else None
    inputs = places.inputs_of(options, {"model": source})
    if target:
        places.check_folder(target, inputs, options.overwrite)
    path = places.report_file(options, inputs) if options.report else None
    if path and target:
        places.check_apart("report", path, {"the output folder": target})
    return _Places(source, target, path)


def _shape(model) -> dict[str, Any]:
    """The fields of a report about the model's size, which stays."""
    size, model_type = size_of(model), model.config.model_type
    return {
        "model_type": Sides(model_type, model_type),
        "parameters": Sides(size.parameters, size.parameters),
        "bytes": Sides(size.bytes, size.bytes),
    }


def _as_loaded(model) -> None:
    """Lay the weights out as loading the saved model does.

    In another layout bfloat16 rounds otherwise, and the perplexity would be that of a model that nobody gets.
    """
    for layer in sparse_layers(model).values():
        by_columns(layer)


def measured_share(model, recipe, tokens) -> float | None:
    """Return the share that is kept: of the targeted matrices, or of their inputs.

    Args:
        model: The sparse model.
        recipe: What was made sparse.
        tokens: LongTensors [length], on a few of which inputs are counted; None where there is no text.

    Returns:
        The share; None for inputs without text.
    """
    import torch

    if recipe.sparse == names.WEIGHTS:
        weights = [model.get_submodule(name).weight for name in targeted(model, recipe.targets)]
        return sum(w.count_nonzero().item() for w in weights) / sum(w.numel() for w in weights)
    if tokens is None:
        return None
    counts = [0, 0]

    def count(sparsity, given):
        kept = sparsity.kept(sparsity.centred(given)[0])
        counts[0] += kept.sum().item()
        counts[1] += kept.numel()

    with Hooks() as hooks, torch.no_grad():
        for layer in sparse_layers(model).values():
            hooks.on_input(layer.sparsity, partial(count, layer.sparsity))
        few = torch.stack(tuple(tokens[: max(1, WATCHED // len(tokens[0]))]))
        model.base_model(input_ids=few.to(model.device), use_cache=False)
    return counts[0] / counts[1]


def _drawn(texts: str | tuple[str, ...] | None, options: SparsifyOptions, tokenizer, config) -> Drawn | None:
    """The calibration windows, but for those that the model writes; None where the recipe needs none."""
    if texts is None:
        return None
    config = config.get_text_config()
    length = window_length(config, options.calibration_seq_len)
    return draw(texts, options.nsamples, length, options.seed, tokenizer, config.vocab_size)


def _told(texts: str | tuple[str, ...] | None, options: SparsifyOptions, drawn: Drawn | None) -> Calibration | None:
    """What the report tells of the calibration text."""
    return Calibration.of(texts, options.nsamples, options.calibration_seq_len, drawn) if texts else None


def _saved(
    target: Path, model, tokenizer, folder: str, options: SparsifyOptions, report, finite, stopwatch
) -> SparsifyReport:
    recipe, note = options.recipe, ""
    if recipe.sparse == names.ACTIVATIONS:
        mark(model, recipe)
        note = "; import llm_pruner before you load it, or it is the dense model"
    return save(
        model, tokenizer, target, folder, report, finite=finite, overwrite=options.overwrite, stopwatch=stopwatch,
        note=note, export=exporters_called(options.export),
    )  # fmt: skip
