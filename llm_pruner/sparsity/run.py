"""Sparse inputs or weights, in a straight line.

model → texts → perplexity → calibration text → sparse → perplexity → staged, verified, published → report
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from llm_pruner.calibration import data
from llm_pruner.config import recipe as names
from llm_pruner.config.sparsify import SparsifyOptions
from llm_pruner.console import quiet, say
from llm_pruner.errors import RunError, redact
from llm_pruner.model import loading
from llm_pruner.model.families import family_of
from llm_pruner.model.per_layer import PREFIX
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output import checkpoint, lineage, places, report
from llm_pruner.sparsity.columns import by_columns
from llm_pruner.sparsity.learn import Learning
from llm_pruner.sparsity.linear import sparse_layers
from llm_pruner.sparsity.sparsify import sparsify
from llm_pruner.sparsity.targets import targeted

PROGRAM = "python -m llm_pruner sparsify"
WATCHED = 4096  # tokens that the share of what is kept is counted on


def run_one(options: SparsifyOptions, argv: Sequence[str] = (), before: dict | None = None) -> dict:
    """One model, one recipe. before: {"perplexity", "zero_shot"} of the dense model where they are known."""
    recipe, name = options.recipe, options.model[0]
    stopwatch = report.Stopwatch()
    source = loading.resolve(name)
    target = Path(options.save_model).expanduser() if options.save_model else None
    inputs = places.inputs_of(options, {"model": source})
    if target:
        places.check_folder(target, inputs, options.overwrite)
    path = places.report_file(options, inputs) if options.report else None
    if path and target:
        places.check_apart("report", path, {"the output folder": target})
    eval_data = _eval_data(options)
    calibration = _calibration(options)
    tasks = []
    if options.tasks:
        from llm_pruner.evaluation.tasks import check_tasks

        tasks = check_tasks(options.tasks)
    config = loading.load_config(source, options.revision, any_family=True)
    loading.check_dense(name, getattr(config, "quantization_config", None), "start from the dense model")
    family_of(config.model_type.removeprefix(PREFIX))
    quiet()
    say(f"sparse {recipe.sparse}: {recipe.label}")

    device = None if options.device_map else loading.pick_device(options.device)
    with stopwatch("data"):
        folder = loading.fetch(source, options.revision, weights=False)
        origin = lineage.report_of(folder)
        tokenizer = load_tokenizer(folder, needed=bool(eval_data or calibration or tasks))
        if tokenizer is None and (eval_data or calibration or tasks):
            raise RunError(f"{name} has no tokenizer, so no text can be read: neither to score nor to calibrate")
        windows = _windows(options, eval_data, tokenizer, config)
        prompts = _prompts(calibration, options, tokenizer, config)
    with stopwatch("load"):
        folder = loading.fetch(source, options.revision)
        model = loading.load_model(folder, config, options.dtype, device, options.device_map)
    finite = checkpoint.finite_logits(model) if target else None
    if target:
        places.check_disk(target, sum(p.numel() * p.element_size() for p in model.parameters()))
    scored = {"perplexity": {}, "zero_shot": {}}
    with stopwatch("evaluate before"):
        _score(scored, "before", model, tokenizer, windows, tasks, options, before)
    size = report.size_of(model)
    with stopwatch("sparsify"):
        learned = sparsify(model, recipe, prompts, Learning(epochs=options.epochs, seed=options.seed))
        if target and recipe.sparse == names.ACTIVATIONS:
            _as_loaded(model)
    kept = measured_share(model, recipe, windows if windows is not None else prompts)
    with stopwatch("evaluate after"):
        _score(scored, "after", model, tokenizer, windows, tasks, options)
    evaluation = data.described(eval_data, windows) if eval_data else {}
    made = {
        "step": "sparsify",
        "model": redact(name),
        "label": recipe.label,
        "sparsity": recipe.asdict(),
        "kept": kept,
        **scored,
        "evaluation": evaluation,
        "calibration": calibration,
        "learned": learned,
        "model_type": dict.fromkeys(("before", "after"), model.config.model_type),
        "parameters": dict.fromkeys(("before", "after"), size[0]),
        "bytes": dict.fromkeys(("before", "after"), size[1]),
        **lineage.told(origin, redact(name), evaluation),
    }
    if target:
        _save(target, model, tokenizer, folder, options, made, finite, stopwatch, argv)
    made = report.finite(made | report.conditions(options, stopwatch.seconds, argv, PROGRAM))
    if path:
        places.write_files({path: partial(report.write_json, report=made)})
        say(f"saved {path}")
    return made


def _as_loaded(model) -> None:
    """Lays the weights out as loading the saved model does: in another layout bfloat16 rounds otherwise, and the
    perplexity would be that of a model that nobody gets."""
    for layer in sparse_layers(model).values():
        by_columns(layer)


def measured_share(model, recipe, tokens) -> float | None:
    """Of the targeted matrices, or of what they read of the first few windows of `tokens`, the share that is kept."""
    import torch

    if recipe.sparse == names.WEIGHTS:
        weights = [model.get_submodule(name).weight for name in targeted(model, recipe.targets)]
        return sum(w.count_nonzero().item() for w in weights) / sum(w.numel() for w in weights)
    if tokens is None:
        return None
    counts = [0, 0]

    def count(sparsity, arguments):
        kept = sparsity.kept(sparsity.centred(arguments[0])[0])
        counts[0] += kept.sum().item()
        counts[1] += kept.numel()

    hooks = [layer.sparsity.register_forward_pre_hook(count) for layer in sparse_layers(model).values()]
    try:
        with torch.no_grad():
            few = torch.stack(tuple(tokens[: max(1, WATCHED // len(tokens[0]))]))
            model.base_model(input_ids=few.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return counts[0] / counts[1]


def _eval_data(options: SparsifyOptions) -> str | None:
    name = options.eval_data or ("demo" if options.model[0] == "demo" else "wikitext2")
    if name == "none":
        return None
    data.check_name(name)
    return name


def _calibration(options: SparsifyOptions) -> dict:
    """data, nsamples and seq_len of the calibration text; nothing where the recipe needs none."""
    if not options.recipe.needs_text:
        return {}
    name = options.calibration_data or ("demo" if options.model[0] == "demo" else "wikitext2")
    data.check_name(name, data.CALIBRATION, "calibration")
    return {"data": redact(name), "nsamples": options.nsamples, "seq_len": options.calibration_seq_len}


def _windows(options: SparsifyOptions, eval_data: str | None, tokenizer, config):
    if eval_data is None:
        return None
    return data.evaluation_windows(eval_data, tokenizer, config, options.max_seq_len)[:: options.eval_stride]


def _prompts(calibration: dict, options: SparsifyOptions, tokenizer, config):
    if not calibration:
        return None
    config = config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or options.calibration_seq_len
    return data.calibration_prompts(
        options.calibration_data or calibration["data"], options.nsamples, min(options.calibration_seq_len, longest),
        options.seed, tokenizer, config.vocab_size,
    )  # fmt: skip


def _score(scored: dict, side: str, model, tokenizer, windows, tasks, options: SparsifyOptions, known=None) -> None:
    """Puts perplexity and zero-shot scores of one side into `scored`, or those that are known."""
    if known:
        for name in scored:
            scored[name] |= {side: known[name][side]} if side in known.get(name, {}) else {}
        return
    if windows is not None:
        from llm_pruner.evaluation.perplexity import perplexity

        value = scored["perplexity"][side] = perplexity(model, windows, options.batch_size, f"perplexity {side}")
        say(f"perplexity {side}: {value:.2f}")
    if tasks:
        from llm_pruner.evaluation.zero_shot import table, zero_shot

        scored["zero_shot"][side] = zero_shot(
            model, tokenizer, tasks, num_fewshot=options.num_fewshot, batch_size=options.batch_size,
            apply_chat_template=options.apply_chat_template, limit=options.limit, seed=options.seed,
        )  # fmt: skip
        if side == "after":
            say(table(scored["zero_shot"]))


def _save(
    target: Path, model, tokenizer, folder: str, options: SparsifyOptions, made: dict, finite, stopwatch, argv
) -> None:
    recipe = options.recipe
    with checkpoint.staged(target, options.overwrite) as staging:
        say(f"saving {target}")
        with stopwatch("save"):
            if recipe.sparse == names.ACTIVATIONS:
                from llm_pruner.sparsity.saved import mark

                mark(model, recipe)
            checkpoint.write(model, tokenizer, staging, folder)
        with stopwatch("verify"):
            checkpoint.verify(model, staging, finite)
        report.write(staging, report.finite(made | report.conditions(options, stopwatch.seconds, argv, PROGRAM)))
    note = "" if recipe.sparse == names.WEIGHTS else "; import llm_pruner before you load it, or it is the dense model"
    say(f"saved {target} (reloaded in a fresh process: same logits{note})")
