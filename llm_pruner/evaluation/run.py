"""Evaluation, in a straight line: texts, tasks → each model: perplexity, zero-shot → all of them: speed → report."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from llm_pruner.calibration.texts import check_name, usual_text
from llm_pruner.calibration.windows import bytes_per_token, evaluation_windows
from llm_pruner.config.evaluate import PROGRAM, EvaluateOptions, validate
from llm_pruner.console import log, quiet
from llm_pruner.errors import RunError, redact
from llm_pruner.evaluation import speed
from llm_pruner.evaluation.perplexity import bits_per_byte, perplexity
from llm_pruner.evaluation.tables import tables
from llm_pruner.evaluation.tasks import check_tasks
from llm_pruner.evaluation.zero_shot import zero_shot
from llm_pruner.model import loading
from llm_pruner.model.families import FAMILIES, axes_of, stock_type
from llm_pruner.model.per_layer import lacks
from llm_pruner.model.size import size_of
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output import places
from llm_pruner.output.conditions import Stopwatch, conditions
from llm_pruner.output.page import page
from llm_pruner.output.reports import EvaluatedModel, EvaluateReport, Mode, Ratio, Speed, TextScore
from llm_pruner.output.saving import draw, save_report


def evaluate(options: EvaluateOptions, argv: Sequence[str] = ()) -> EvaluateReport:
    """Measure perplexity, zero-shot tasks and speed of several checkpoints.

    Args:
        options: What to measure, and on which checkpoints.
        argv: The arguments of the command as they were typed, for the report.

    Returns:
        The report.

    Raises:
        PrunerError: Whatever fails, with its exit code.
    """
    validate(options)
    stopwatch = Stopwatch()
    sources, dense = _sources(options)
    path = places.report_file(options, places.inputs_of(options, sources), page=True) if options.report else None
    texts = _texts(options)
    tasks = check_tasks(options.tasks) if options.tasks else []
    configs = {name: loading.load_config(source, any_family=True) for name, source in sources.items()}
    quiet()
    if options.speed:
        speed.check_lengths(configs, options.prompt_len, options.new_tokens)
    device = None if options.device_map else loading.pick_device(options.device)
    models = _Models(options, sources, configs, device)
    found = []
    for name in sources:
        found.append(_measured(models, name, texts, tasks, options, stopwatch))
        # models are compared in turns, so all of them have to be there at once
        if not options.speed:
            models.forget()
    ratios: dict[str, Any] = {}
    if options.speed:
        with stopwatch("speed"):
            measured = speed.measure(
                {name: models.load(name) for name in sources}, options.speed_batch_size, options.prompt_len,
                options.new_tokens, options.repeats, options.seed,
            )  # fmt: skip
        found = [replace(own, speed=_speed(measured[own.name])) for own in found]
        ratios = speed.ratios(measured, dense)
    made = EvaluateReport(
        models=found,
        dense=dense,
        ratios=_ratios(ratios),
        conditions=_conditions(options, device),
        **conditions(options, stopwatch.seconds, argv, PROGRAM),
    )
    log(tables(made))
    if path:
        beside = path.with_suffix(".html")
        save_report(path, made)
        drawn = draw(beside, lambda: page([], made), options.traceback)
        log(f"saved {path} and {beside}" if drawn else f"saved {path}")
    return made


@dataclass
class _Models:
    """The models, each loaded when it is first needed."""

    options: EvaluateOptions
    sources: dict[str, str]
    configs: dict[str, Any]
    device: Any
    loaded: dict[str, Any] = field(default_factory=dict)

    def load(self, name: str) -> Any:
        """Return a model."""
        if name not in self.loaded:
            log(f"loading {name}")
            folder, options = loading.fetch(self.sources[name]), self.options
            self.loaded[name] = loading.load_model(
                folder, self.configs[name], options.dtype, self.device, options.device_map
            )
        return self.loaded[name]

    def forget(self) -> None:
        """Free the memory."""
        self.loaded.clear()
        gc.collect()


def _measured(
    models: _Models, name: str, texts: list[str], tasks: list[str], options: EvaluateOptions, stopwatch: Stopwatch
) -> EvaluatedModel:
    """Everything but the speed of a model."""
    source = models.sources[name]
    with stopwatch("load"):
        model = models.load(name)
        tokenizer = load_tokenizer(loading.fetch(source, weights=False), needed=bool(texts or tasks))
    with stopwatch("perplexity"):
        scores = {text: _scored(model, tokenizer, text, options, name) for text in texts}
    found = replace(_described(name, source, model), perplexity=scores)
    if not tasks:
        return found
    with stopwatch("zero-shot"):
        answers = zero_shot(
            model, tokenizer, tasks, num_fewshot=options.num_fewshot, batch_size=options.batch_size,
            apply_chat_template=options.apply_chat_template, limit=options.limit, seed=options.seed,
        )  # fmt: skip
    return replace(found, zero_shot=answers)


def _sources(options: EvaluateOptions) -> tuple[dict[str, str], str]:
    """({name on the terminal: where to load from}, the name of the dense model), which comes first."""
    given = ([options.dense] if options.dense else []) + list(options.model)
    given = list(dict.fromkeys(given))
    short = [one if one == "demo" else Path(one).name or one for one in given]
    names = [name if short.count(name) == 1 else one for name, one in zip(short, given)]
    sources = {redact(name): loading.resolve(one) for name, one in zip(names, given)}
    return sources, next(iter(sources))


def _texts(options: EvaluateOptions) -> list[str]:
    given = options.eval_data or (usual_text(*options.model, options.dense),)
    if given == ("none",):
        return []
    for name in given:
        check_name(name)
    return list(dict.fromkeys(given))


def _described(name: str, source: str, model) -> EvaluatedModel:
    return EvaluatedModel(
        name=name,
        path=redact(source),
        model_type=model.config.model_type,
        dtype=str(model.dtype).removeprefix("torch."),
        **size_of(model)._asdict(),
        layers=model.config.get_text_config().num_hidden_layers,
        widths=widths(model.config.get_text_config()),
    )


def _speed(measured: dict) -> Speed:
    return Speed({name: Mode(**mode) for name, mode in measured["modes"].items()}, measured["peak_memory"])


def _ratios(found: dict) -> dict[str, dict[str, dict[str, Ratio]]]:
    return {
        name: {mode: {what: Ratio(**own) for what, own in phases.items()} for mode, phases in modes.items()}
        for name, modes in found.items()
    }


def widths(config) -> dict[str, int | list[int]]:
    """Return {configuration field: width, or one for each layer where they differ}, of what the configuration names."""
    model_type = stock_type(config.model_type)
    family = FAMILIES.get(model_type) if model_type in FAMILIES else None
    overrides = getattr(config, "per_layer_widths", None) or ()
    found: dict[str, int | list[int]] = {}
    for axis in (axis for axis in axes_of(model_type) if axis.is_width and axis.prunable):
        own = axis.field_of(family) if family else axis.field
        stock = axis.read(config, family) if family else getattr(config, own, None)
        layers = [0 if lacks(axis, layer) else layer.get(own, stock) for layer in overrides]
        width = layers if len(set(layers)) > 1 else layers[0] if layers else stock
        if width is not None:
            found[axis.field] = width
    return found


def _scored(model, tokenizer, text: str, options: EvaluateOptions, name: str) -> TextScore:
    if tokenizer is None:
        raise RunError(f"{name} has no tokenizer, so no text can be scored; use `eval_data=none`")
    windows = evaluation_windows(text, tokenizer, model.config, options.max_seq_len)
    value = perplexity(model, windows, options.batch_size, f"perplexity of {name}")
    bits = bits_per_byte(value, bytes_per_token(windows, tokenizer))
    return TextScore(value, len(windows), windows.shape[1], bits)


def _conditions(options: EvaluateOptions, device) -> dict:
    import torch

    found = {"device": str(device or options.device_map), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
    if options.speed:
        names = ("speed_batch_size", "prompt_len", "new_tokens", "repeats")
        found |= {name: getattr(options, name) for name in names}
    return found
