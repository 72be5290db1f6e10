"""One run, in a straight line.

config.json → groups → shape → plan        (--dry_run stops here, unless scores decide the shape)
→ checks → texts → model → perplexity → evidence → scores → widths, kept units → cut or mask → perplexity
→ staged, verified, published → report
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_pruner.calibration import data
from llm_pruner.config.prune import Options
from llm_pruner.config.prune_rules import SCORING, asked_of, validate, wants_best
from llm_pruner.console import quiet, say
from llm_pruner.errors import PlanError, PrunerError, RunError, UsageError, redact
from llm_pruner.evaluation.scores import Measurement, compared, text_to_score, windows_of
from llm_pruner.importance import Calibration, Criterion, evidence
from llm_pruner.importance import score_cache as scores
from llm_pruner.importance.evidence import Found
from llm_pruner.importance.selection import quantiles
from llm_pruner.model import loading
from llm_pruner.model.groups import FIELD, HIDDEN, MLP
from llm_pruner.model.size import Size, size_of
from llm_pruner.model.tokenizers import has_tokenizer, load_tokenizer
from llm_pruner.output import checkpoint, lineage
from llm_pruner.output.conditions import Stopwatch, conditions
from llm_pruner.output.places import check_disk, check_outputs
from llm_pruner.output.reports import Calibration as Calibrated
from llm_pruner.output.reports import Layers, PruneReport, Reconstruction, Sides, Tried
from llm_pruner.output.saving import save
from llm_pruner.pruning import (
    change,
    choose_units,
    decide_widths,
    found_in,
    plan_for,
    replayed,
    settled,
)
from llm_pruner.shape.draft import Shape, groups_to_score, shape_of
from llm_pruner.shape.plan import Plan

OWN_CLASS = (
    "note: saved as {}, whose modelling file comes with it: load it with trust_remote_code=True, "
    "or import llm_pruner first"
)
PROGRAM = "python prune_llm.py"
BIG = 10**9  # parameters from which a width off the hardware's multiples is worth a hint


def run(options: Options, argv: Sequence[str] = ()) -> PruneReport | Plan:
    """Prune a checkpoint and return the report, of a dry run the plan; a failure is a PrunerError with an exit code."""
    validate(options)
    stopwatch = Stopwatch()
    say("options: " + ", ".join(f"{k}={v}" for k, v in options.asdict().items() if v is not None and v is not False))
    source = loading.resolve(options.model)
    target = check_outputs(options, source)
    eval_data = None if options.dry_run else text_to_score(options.eval_data, options.model)
    tasks = _tasks(options)
    if options.plan:
        options = replayed(options)
    with stopwatch("plan"):
        loading.check_family(source, options.revision)
        quiet()
        config = loading.load_config(source, options.revision)
        if options.dtype != "auto":
            config.dtype = options.dtype
        elif options.target_memory and config.dtype is None:
            raise UsageError(f"target_memory: the config.json of {options.model} names no dtype; give --dtype too")
        options, shape, prompts = _method(options, config, source)
        criterion = evidence.effective(options)
        options = settled(options, shape)
        plan = new_config = None
        if shape.after:
            plan, new_config = plan_for(shape.skeleton, shape, shape.after, options)
    if plan:
        _announce(plan, new_config, shape, options)
    to_score = [] if options.method else groups_to_score(shape)
    scored = bool(to_score) and (not options.dry_run or plan is None or bool(options.save_plan))
    calibration, key, found = _known(options, criterion, shape, config, source, scored)
    if scored and not calibration and (options.calibration_data or options.nsamples or options.calibration_seq_len):
        say(f"note: importance {criterion.name} measures no activations, so there is nothing to calibrate")
    used = (calibration.data, calibration.nsamples, calibration.seq_len) if calibration else (None, None, None)
    options = replace(options, **dict(zip(("calibration_data", "nsamples", "calibration_seq_len"), used)))
    if options.dry_run and scored and not found and not criterion.needs:
        found = evidence.gather(None, shape, to_score, criterion, replace(options, compensate="none"), None, None)
    if options.dry_run and options.method:
        if shape.budget:
            say("note: this shape is where a search would start; without --dry_run others of this size are compared")
        return plan
    if options.dry_run and (not scored or found):
        return _finish_plan(plan, shape, shape.skeleton, found or Found(), options)[0]

    if plan:
        _check_disk(target, plan, options)
    device = None if options.device_map else loading.pick_device(options.device)
    with stopwatch("data"):
        folder = loading.fetch(source, options.revision, weights=False)
        origin = lineage.report_of(folder)
        tokenizer = load_tokenizer(folder, bool(eval_data or tasks or calibration and not found and not prompts))
        if not has_tokenizer(folder):
            say("note: the model has no tokenizer, so none is saved")
        windows, evaluation = windows_of(eval_data, options.model, tokenizer, config, options.max_seq_len)
        if calibration and not found and not prompts:
            prompts = _prompts(calibration, options, config, tokenizer)
    with stopwatch("load"):
        folder = loading.fetch(source, options.revision)
        model = loading.load_model(folder, config, options.dtype, device, options.device_map)
        _check_against(shape, model)
        finite = checkpoint.finite_logits(model) if target else None
    measurement = Measurement(windows, evaluation, tasks, options.batch_size, seed=options.seed)
    before = measurement.of(model, tokenizer, "before", stopwatch)
    notes: dict = {}
    if options.method:
        from llm_pruner.reconstruction.method import prune_best

        best = prune_best(model, shape, options, prompts, stopwatch, say)
        if best.plan.after != plan.after or best.config.model_type != new_config.model_type:
            _announce(best.plan, best.config, shape, options)
        model, plan, new_config, notes = best.model, best.plan, best.config, best.notes
    elif found is None:
        with stopwatch("score"):
            groups = evidence.scoreable(shape, criterion) if key and not criterion.sequential else to_score
            found = found_in(model, shape, groups, criterion, options, prompts)
            if key:
                scores.save(Path(options.scores).expanduser(), key, found.scores, found.means)
                say(f"scores saved to {options.scores}")
    if not options.method:
        plan, new_config = _finish_plan(plan, shape, model, found, options)
        if options.dry_run:
            return plan
        _check_disk(target, plan, options)
        with stopwatch("cut"):
            model, new_config = change(model, shape, plan, new_config, found.means, options)
    if options.mask_only and new_config.model_type != plan.model_type:  # for its biases
        say(OWN_CLASS.format(new_config.model_type))
    scores_of = compared(before, measurement.of(model, tokenizer, "after", stopwatch))
    size, used = size_of(model), None
    if calibration:
        # A file may hold fewer records than were asked for.
        count = len(prompts) if prompts else calibration.nsamples
        used = Calibrated(redact(calibration.data), count, calibration.seq_len)

    def report() -> PruneReport:
        return PruneReport(
            **_planned(options, plan, new_config.model_type, size),
            evaluation=evaluation,
            calibration=used,
            scores=quantiles(found.scores, shape.groups) if found else {},
            reconstruction=_reconstruction(notes),
            **scores_of,
            **lineage.told(origin, redact(options.model), evaluation),
            **conditions(options, stopwatch.seconds, argv, PROGRAM) | {"seed": plan.seed},
        )

    if target is None:
        return report()
    return save(
        model, tokenizer, target, folder, report, finite=finite, overwrite=options.overwrite, stopwatch=stopwatch
    )


def _planned(options: Options, plan: Plan, model_type: str, size: Size) -> dict[str, Any]:
    """The fields of a report that a plan tells. A width that differs between layers is a list with one for each."""
    return {
        "model": redact(options.model),
        "model_type": Sides(plan.model_type, model_type),
        "parameters": Sides(plan.parameters_before, size.parameters),
        "decoder_parameters": Sides(plan.decoder_before, plan.decoder_after),
        "bytes": Sides(plan.bytes_before, size.bytes),
        "widths": Sides(plan.before.asdict(), plan.widths_after()),
        "layers": Layers(plan.num_layers_before or len(plan.after), len(plan.after), plan.layers),
        "removed": {name: round(share, 6) for name, share in plan.removed().items()},
        "importance": plan.importance,
        "compensate": plan.compensate,
        "masked": options.mask_only,
    }


def _reconstruction(notes: dict[str, Any]) -> Reconstruction | None:
    """What the method notes for the report; None where it was another method."""
    tried = {name: [Tried(**one) for one in notes[name]] for name in ("search", "finals") if name in notes}
    return Reconstruction(**notes | tried) if notes else None


def _method(options: Options, config, source: str):
    """(options with a method, the shape they ask for, prompts if they had to be made to know it).

    Where no method is named it is `best`, if there is calibration text for it and the shape can be had by it; else
    magnitude.
    """
    wanted = wants_best(options)
    if wanted is False:
        if not (options.importance or options.plan or options.iteration):
            named = asked_of(options, (*SCORING, "save_plan"))[0]
            say(f"note: pruning by magnitude: {named} does not go with the best method")
        return options, shape_of(options, config, evidence.effective(options)), None
    best = replace(options, method="best")
    if wanted:
        return best, shape_of(best, config, evidence.effective(best)), None
    prompts = None
    try:
        shape = shape_of(best, config, evidence.effective(best))
        if not options.dry_run and settled(best, shape).method:
            calibration = _calibration(best, evidence.effective(best), config)
            tokenizer = load_tokenizer(loading.fetch(source, options.revision, weights=False))
            prompts = _prompts(calibration, best, config, tokenizer)
        return best, shape, prompts
    except PrunerError as error:
        if options.calibration_data and not isinstance(error, PlanError):
            raise
        plain = replace(options, importance="magnitude")
        try:
            shape = shape_of(plain, config, evidence.effective(plain))
        except PlanError:  # which takes fewer kinds, and so comes less near to a size
            if options.target_params or options.target_memory:
                raise error from None
            raise
        say(f"note: pruning by magnitude, because the best method cannot be used here: {error}")
        return plain, shape, None


def _calibration(options: Options, criterion: Criterion, config) -> Calibration:
    length = getattr(config, "max_position_embeddings", None) or sys.maxsize
    calibration = evidence.calibration_of(options, criterion, length)
    data.check_name(calibration.data, data.CALIBRATION, "calibration")
    return calibration


def _check_disk(target: Path | None, plan: Plan, options: Options) -> None:
    if target:
        check_disk(target, plan.bytes_before if options.mask_only else plan.bytes_after)


def _announce(plan: Plan, new_config, shape: Shape, options: Options) -> None:
    """The table, and what is worth knowing about the new configuration."""
    say(plan.table(shape.requested))
    if options.mask_only:
        say("note: masked only: every shape stays, the table shows what a cut would leave")
    elif "per_layer_widths" in plan.config:
        say(OWN_CLASS.format(new_config.model_type))
    elif new_config.model_type != plan.model_type:
        say(f"note: saved as {new_config.model_type}, which computes the same; {plan.model_type} refuses this shape")
    if plan.parameters_before >= BIG:
        for name in (FIELD[HIDDEN], FIELD[MLP]):
            width = getattr(plan.after[0], name)
            if width % 64 and len({getattr(layer, name) for layer in plan.after}) == 1:
                say(f"hint: {name}={width} is not a multiple of 64, which GPUs like; a ratio takes --round_to 64")


def _known(options: Options, criterion: Criterion, shape: Shape, config, source: str, scored: bool):
    """(calibration, the key of the scores, what was found before): each None where it plays no part.

    UsageError when the calibration data is nothing, or --scores has scores of something else.
    """
    calibration = None
    if options.method or evidence.needs(options, criterion, scored) - {"weights"}:
        calibration = _calibration(options, criterion, config)
    if not (options.scores and scored):
        return calibration, None, None
    path = Path(options.scores).expanduser()
    model = scores.fingerprint(source, loading.fetch(source, options.revision, weights=False))
    key = evidence.key_of(options, criterion, shape, calibration, model)
    if not path.exists():
        return calibration, key, None
    found = Found(*scores.load(path, key, *evidence.sizes(shape, criterion)))
    if options.compensate == "bias" and not found.means:
        raise UsageError(f"--scores {path} was made without --compensate bias and has no means; name another file")
    missing = [group.name for group in groups_to_score(shape) if group.name not in found.scores]
    if missing:
        raise UsageError(f"--scores {path} has none of {missing[0]}; name another file, or delete it")
    say(f"scores taken from {path}")
    return calibration, key, found


def _check_against(shape: Shape, model) -> None:
    """RunError when the model has other parameters than its config says.

    transformers unties an lm_head that a checkpoint stores beside the embeddings it is declared to share.
    """
    expected = shape.ledger.total(shape.ledger.all_layers(shape.ledger.before))
    parameters = size_of(model).parameters
    if parameters != expected:
        raise RunError(
            f"the checkpoint has {parameters:,} parameters, its config.json says {expected:,}; "
            "if it holds an lm_head of its own, set tie_word_embeddings to false there"
        )


def _tasks(options: Options) -> list[str]:
    """The usual zero-shot tasks, where they are asked for. RunError when lm_eval is not installed."""
    if not options.eval_zero_shot or options.dry_run:
        return []
    from llm_pruner.evaluation.tasks import check_tasks

    return check_tasks(["usual"])


def _finish_plan(known: Plan | None, shape: Shape, model, found: Found, options: Options) -> tuple[Plan, object]:
    """(plan with its kept units, new config), shown if it was not `known` before, and saved where that is wanted.

    A dry run that saves nothing has no scores to choose units by.
    """
    plan, new_config = decide_widths(model, shape, found, options)
    if known is None:
        _announce(plan, new_config, shape, options)
    if options.dry_run and not options.save_plan:
        return plan, new_config
    plan = choose_units(plan, shape, found, options)
    if options.save_plan:
        plan.save(Path(options.save_plan).expanduser())
        say(f"plan saved to {options.save_plan}")
    return plan, new_config


def _prompts(calibration: Calibration, options: Options, config, tokenizer):
    if tokenizer is None:
        raise RunError(
            f"{options.model} has no tokenizer, so it cannot be calibrated; magnitude and mag_sp need no text"
        )
    prompts = data.calibration_prompts(
        calibration.data, calibration.nsamples, calibration.seq_len, options.seed, tokenizer, config.vocab_size
    )
    longest = max(map(len, prompts))
    say(f"calibration: {len(prompts)} windows of {longest} tokens at most, of {calibration.data}, seed {options.seed}")
    return prompts
