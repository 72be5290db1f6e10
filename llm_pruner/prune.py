"""One run, in a straight line.

config.json → groups → widths → plan        (--dry_run stops here)
→ checks → text → model → perplexity → scores → kept units → cut → perplexity
→ staged, verified, published → report
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llm_pruner import checkpoint, data, importance, loading, report
from llm_pruner.architectures import family_of, widths_of
from llm_pruner.config import Options, validate
from llm_pruner.errors import PlanError, RunError, UsageError, redact
from llm_pruner.plan import Plan, check_replay, choose, make_plan, meta_model, scored_groups
from llm_pruner.widths import (
    FIELD,
    parse_prune,
    parse_target,
    ratio_of_one_step,
    widths_by_ratio,
    widths_by_target,
)

BIG = 10**9  # parameters from which a width off the hardware's multiples is worth a hint


def run(options: Options, argv: Sequence[str] = ()) -> dict:
    """Does what `options` say and returns the report. Every failure is a PrunerError with its exit code."""
    validate(options)
    stopwatch = report.Stopwatch()
    _say("options: " + ", ".join(f"{k}={v}" for k, v in options.asdict().items() if v not in (None, False)))
    source = loading.resolve(options.model)
    target = _check_outputs(options, source)
    eval_data = _check_eval_data(options)
    with stopwatch("plan"):
        loading.check_family(source, options.revision)
        _quiet()
        config = loading.load_config(source, options.revision)
        if options.dtype != "auto":
            config.dtype = options.dtype
        groups, plan, new_config, requested = _plan(options, config)
    _say(plan.table(requested))
    _hints(plan, new_config)
    criterion = importance.get(options.importance)
    to_score = [] if plan.kept else scored_groups(groups, plan.before, plan.after)
    if options.dry_run and not (options.save_plan and to_score and criterion.needs):
        if options.save_plan:
            _save_plan(options, _decide(plan, groups, to_score, criterion, options, {}))
        return {"plan": plan}

    if target:
        checkpoint.check_disk(target, plan.bytes_after)
    tokenizer, windows, evaluation = None, None, {}
    device = None if options.device_map else loading.pick_device(options.device)
    if not options.dry_run:
        with stopwatch("data"):
            tokenizer = loading.load_tokenizer(loading.fetch(source, options.revision, weights=False))
            if tokenizer is None:
                _say("note: the model has no tokenizer, so none is saved")
            if eval_data:
                windows, evaluation = _windows(options, eval_data, config, tokenizer)
    with stopwatch("load"):
        folder = loading.fetch(source, options.revision)
        model = loading.load_model(folder, config, options.dtype, device, options.device_map)
        plan = _check_against(plan, model, groups)
    perplexities = {}
    if windows is not None:
        with stopwatch("evaluate before"):
            perplexities["before"] = _perplexity(model, windows, options, "perplexity before")
    with stopwatch("score"):
        plan = _decide(plan, groups, to_score, criterion, options, dict(model.named_parameters()))
    _save_plan(options, plan)
    if options.dry_run:
        return {"plan": plan}
    with stopwatch("cut"):
        from llm_pruner.surgery import cut

        model = cut(model, groups, plan, new_config)
    if windows is not None:
        with stopwatch("evaluate after"):
            perplexities["after"] = _perplexity(model, windows, options, "perplexity after")

    def result() -> dict:
        return report.build(options, plan, new_config, perplexities, evaluation, stopwatch.seconds, argv)

    if target is None:
        return result()
    with checkpoint.staged(target, options.overwrite) as staging:
        _say(f"saving {target}")
        with stopwatch("save"):
            checkpoint.write(model, tokenizer, staging)
        with stopwatch("verify"):
            checkpoint.verify(model, staging)
        final = result()
        report.write_json(staging / "report.json", final)
        report.write_card(staging / "README.md", final)
    _say(f"saved {target} (reloaded in a fresh process: same logits)")
    return final


def _say(text: str) -> None:
    print(redact(text), flush=True)


def _quiet() -> None:
    """One voice on the screen: ours."""
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    if not sys.stderr.isatty():
        theirs.disable_progress_bar()


def _check_against(plan: Plan, model, groups) -> Plan:
    """The plan with the bytes of the model that was loaded. RunError when that has other parameters than its config.

    transformers unties an lm_head that a checkpoint stores beside the embeddings it is declared to share.
    """
    parameters = sum(p.numel() for p in model.parameters())
    if parameters != plan.parameters_before:
        raise RunError(
            f"the checkpoint has {parameters:,} parameters, its config.json says {plan.parameters_before:,}; "
            "if it holds an lm_head of its own, set tie_word_embeddings to false there"
        )
    loaded, _ = make_plan(model, groups, plan.after)
    return replace(plan, bytes_before=loaded.bytes_before, bytes_after=loaded.bytes_after)


def _check_outputs(options: Options, source: str) -> Path | None:
    """The folder to save to, if any. UsageError, before anything is loaded, when an output cannot be written."""
    if options.save_plan:
        path = Path(options.save_plan).expanduser()
        parent = path.absolute().parent
        if path.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"--save_plan {path} is not a file in an existing folder with write permission")
        if _inside(path, source):
            raise UsageError(f"--save_plan {path} is inside the input model; choose another place")
    if options.dry_run or options.no_save:
        return None
    if options.save_model:
        target = Path(options.save_model).expanduser()
    else:
        name = options.model if options.model == "demo" else Path(source).resolve().name
        if options.pruning_ratio is not None:
            what = f"r{options.pruning_ratio:.2f}"
        else:
            what = Path(options.plan).stem if options.plan else options.target or options.prune
        target = Path("pruned") / f"{name}-{what.replace('=', '').replace(',', '-').replace(' ', '')}"
    checkpoint.check_target(target, source, options.overwrite)
    if options.save_plan and _inside(options.save_plan, target):
        raise UsageError(f"--save_plan {options.save_plan} is inside {target}, which the checkpoint will replace")
    return target


def _inside(path: str | Path, folder: str | Path) -> bool:
    return Path(folder).expanduser().resolve() in Path(path).expanduser().resolve().parents


def _check_eval_data(options: Options) -> str | None:
    """The name of the evaluation data, or None for none. UsageError for a name that is nothing."""
    name = options.eval_data or ("demo" if options.model == "demo" else "wikitext2")
    if name == "none" or options.dry_run:
        return None
    data.check_name(name)
    return name


def _plan(options: Options, config):
    """(groups, plan, new config, requested ratio by kind): from a saved plan, explicit widths or ratios."""
    from llm_pruner.trace import trace_groups

    skeleton = meta_model(config)
    groups = trace_groups(skeleton)
    before, requested = widths_of(config), {}
    if options.plan:
        saved = Plan.load(options.plan)
        check_replay(saved, config, groups)
        plan, new_config = make_plan(skeleton, groups, saved.after)
        plan = replace(plan, kept=saved.kept, importance=saved.importance, seed=saved.seed)
        return groups, plan, new_config, requested
    if options.target:
        after = widths_by_target(before, parse_target(options.target, config))
    else:
        requested = parse_prune(options.prune, options.pruning_ratio)
        derived = family_of(config.model_type).derived_head_dim
        after = widths_by_ratio(before, requested, derived, options.round_to)
    if after == before and (options.target or any(requested.values())):
        what = f"the ratio {max(requested.values()):g}" if requested else f"--target {options.target}"
        step = requested and ratio_of_one_step(before, requested, options.round_to)
        hint = f"; the smallest ratio that takes a whole step is {step:g}" if requested else ""
        raise PlanError(f"{what} changes nothing{hint}")
    plan, new_config = make_plan(skeleton, groups, after)
    return groups, replace(plan, importance=options.importance, seed=options.seed), new_config, requested


def _hints(plan: Plan, new_config) -> None:
    if new_config.model_type != plan.model_type:
        _say(f"note: saved as {new_config.model_type}, which computes the same; {plan.model_type} refuses this shape")
    if plan.parameters_before >= BIG:
        for name in (FIELD["hidden"], FIELD["mlp"]):
            width = getattr(plan.after, name)
            if width % 64:
                _say(f"hint: {name}={width} is not a multiple of 64, which GPUs like; a ratio takes --round_to 64")


def _save_plan(options: Options, plan: Plan) -> None:
    if options.save_plan:
        plan.save(Path(options.save_plan).expanduser())
        _say(f"plan saved to {options.save_plan}")


def _windows(options: Options, name: str, config, tokenizer):
    """(token windows, what they are)."""
    text = data.load_text(name)
    if tokenizer is None:
        raise RunError(f"{options.model} has no tokenizer, so no text can be scored; use --eval_data none")
    length = min(options.max_seq_len, getattr(config, "max_position_embeddings", options.max_seq_len))
    windows = data.token_windows(text, tokenizer, length, config.vocab_size)
    return windows, {"data": redact(name), "max_seq_len": length, "windows": len(windows)}


def _decide(plan: Plan, groups, to_score, criterion, options: Options, parameters: dict) -> Plan:
    """The plan with its kept units. RunError, naming the tensor, when any weight is NaN or Inf."""
    from llm_pruner.weights import Weights

    weights = Weights(parameters)
    if plan.kept is None:
        evidence = importance.Evidence(weights=weights if criterion.needs else None, seed=options.seed)
        scores = importance.score(to_score, criterion, evidence)
        plan = replace(plan, kept=choose(groups, scores, plan.before, plan.after))
    weights.check_all_finite()
    return plan


def _perplexity(model, windows, options: Options, label: str) -> float:
    from llm_pruner.evaluate.perplexity import perplexity

    value = perplexity(model, windows, options.batch_size, label)
    _say(f"{label}: {value:.2f}")
    return value
