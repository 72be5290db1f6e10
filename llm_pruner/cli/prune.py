"""`prune`, in a straight line.

options → request, method → draft of config.json          --dry_run stops here, unless scores decide the shape
→ texts → model → perplexity → method.prune → perplexity → staged, verified, published → report
"""

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_pruner.calibration.mixtures import Drawn, listed, text_key
from llm_pruner.calibration.needs import WEIGHTS
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.calibration.windows import bytes_per_token
from llm_pruner.cli.calibrating import calibration_of, completed, windows_drawn
from llm_pruner.cli.deciding import Decision, decided
from llm_pruner.cli.requests import replayed, request_of, validate, without_vocabulary
from llm_pruner.cli.vocabulary import Origin, scratch, with_vocabulary
from llm_pruner.config.prune import PROGRAM, PruneOptions
from llm_pruner.console import log, quiet
from llm_pruner.errors import PlanError, RunError, UsageError, redact
from llm_pruner.evaluation.scores import Measurement, compared, text_to_score, windows_of
from llm_pruner.evaluation.tasks import check_tasks
from llm_pruner.files import checkpoint_digest
from llm_pruner.importance import score_cache
from llm_pruner.importance.selection import quantiles
from llm_pruner.methods import Journal, Measured, Pruned, Reconstruct, ScoreAndCut
from llm_pruner.model import loading
from llm_pruner.model.axes import HIDDEN, MLP, VOCAB
from llm_pruner.model.size import Size, size_of
from llm_pruner.model.tokenizers import has_tokenizer, load_tokenizer
from llm_pruner.output import checkpoint, lineage
from llm_pruner.output.conditions import Stopwatch, conditions
from llm_pruner.output.exporters import exporters_called
from llm_pruner.output.places import check_disk, check_outputs
from llm_pruner.output.reports import Calibration as Calibrated
from llm_pruner.output.reports import Layers, PruneReport, Reconstruction, Sides, Tried
from llm_pruner.output.saving import save, warned
from llm_pruner.shape.draft import Open, Searched
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Replay, Request
from llm_pruner.vocabulary.choice import Wanted
from llm_pruner.vocabulary.cut import tokens_of, without_tokens

OWN_CLASS = (
    "note: saved as {}, whose modelling file comes with it: load it with trust_remote_code=True, "
    "or import llm_pruner first"
)
# parameters from which a width off the hardware's multiples is worth a hint
BIG = 10**9


@dataclass(frozen=True)
class Known:
    """What is known before anything is loaded; each is None where it plays no part.

    Attributes:
        calibration: The calibration text.
        key: What the scores in --scores are made from.
        measured: The scores that were there.
    """

    calibration: Calibration | None = None
    key: dict[str, object] | None = None
    measured: Measured | None = None


def run(options: PruneOptions, argv: Sequence[str] = ()) -> PruneReport | Plan:
    """Prune a checkpoint.

    Args:
        options: What to do.
        argv: The arguments of the command as they were typed, for the report.

    Returns:
        The report; of a dry run the plan.

    Raises:
        PrunerError: Whatever fails, with its exit code.
    """
    validate(options)
    # what is written on the way is needed until the checkpoint is saved
    with contextlib.ExitStack() as stack:
        return _run(options, argv, stack)


def _run(options: PruneOptions, argv: Sequence[str], stack: contextlib.ExitStack) -> PruneReport | Plan:
    stopwatch = Stopwatch()
    log(f"options: {_set(options)}")
    source = loading.resolve(options.model)
    target = check_outputs(options, source)
    eval_data, tasks = _to_score(options)
    exporters = exporters_called(options.export)
    with stopwatch("plan"):
        asked, request, origin = _origin(options, source, stack)
        decision = replace(decided(asked, request, origin), tokens=origin.tokens)
    if decision.plan:
        _announce(decision.plan, decision.config, decision, asked)
    known = _known(asked, decision, origin)
    if asked.dry_run and (plan := _dry_plan(asked, decision, known)):
        return decision.told(plan)
    _check_disk(target, decision.plan, asked)
    with stopwatch("data"):
        made_from = lineage.report_of(origin.fetched)
        tokenizer, drawn = _texts(asked, decision, known, origin, bool(eval_data or tasks))
        dense, measurement = _measurements(asked, origin, tokenizer, eval_data, tasks)
    with stopwatch("load"):
        model = _loaded(asked, decision, origin.dense, loading.fetch(source, asked.revision))
        finite = checkpoint.finite_logits(model) if target else None
    before = dense.of(model, origin.tokenizer or tokenizer, "before", stopwatch)
    if origin.tokens:
        model = origin.tokens.applied(model)
        finite = checkpoint.finite_logits(model) if target else None
    # text that the model writes itself is of the tokens that stay
    drawn = completed(drawn, asked, model, origin, stopwatch)
    pruned = _pruned(asked, decision, known, model, drawn, stopwatch, target)
    if asked.dry_run:
        return decision.told(pruned.plan)
    del model
    evaluation = measurement.evaluation
    told = compared(before, measurement.of(pruned.model, tokenizer, "after", stopwatch)) | {
        "evaluation": evaluation, "vocabulary": origin.told(dense, measurement),
        **lineage.told(made_from, redact(asked.model), evaluation),
    }  # fmt: skip

    def report() -> PruneReport:
        made = _told(asked, decision, known, pruned, drawn)
        # the options of a replayed plan are those that it was made with
        given = replace(asked, **{name: getattr(options, name) for name in ("prune", "target", "pruning_ratio")})
        return PruneReport(**conditions(given, stopwatch.seconds, argv, PROGRAM) | made | told)

    if target is None:
        return warned(report())
    return save(
        pruned.model, tokenizer, target, origin.folder or origin.fetched, report, finite=finite,
        overwrite=asked.overwrite, stopwatch=stopwatch, export=exporters,
    )  # fmt: skip


def _origin(options: PruneOptions, source: str, stack: contextlib.ExitStack) -> tuple[PruneOptions, Request, Origin]:
    """(the options without the vocabulary, how much goes beside it, the model with the tokens that stay)."""
    bare, wanted = without_vocabulary(options)
    request = request_of(bare)
    asked = replayed(bare, request)
    origin = Origin(source, asked.revision, _config(asked, source))
    if isinstance(request, Replay) and (ids := tokens_of(request.plan)) is not None:
        if request.plan.before[VOCAB] != origin.dense.vocab_size:
            raise PlanError(
                f"{request.where}: the plan is for {VOCAB.field}={request.plan.before[VOCAB]}, this model has "
                f"{origin.dense.vocab_size}"
            )
        wanted, request = Wanted(ids=ids), replace(request, plan=without_tokens(request.plan))
    if wanted:
        origin = with_vocabulary(asked, wanted, origin, stack.enter_context(scratch()))
    return asked, request, origin


def _measurements(
    options: PruneOptions, origin: Origin, tokenizer, eval_data: str | None, tasks: list[str]
) -> tuple[Measurement, Measurement]:
    """How the dense model is measured, and how the pruned one is: alike, but with its own tokens."""

    def measurement(own, config) -> Measurement:
        windows, evaluation = windows_of(eval_data, options.model, own, config, options.max_seq_len)
        size = bytes_per_token(windows, own) if origin.tokens and windows is not None else None
        return Measurement(
            windows, evaluation, tasks, options.batch_size, seed=options.seed, bytes_per_token=size
        )  # fmt: skip

    pruned = measurement(tokenizer, origin.config)
    return (measurement(origin.tokenizer, origin.dense) if origin.tokens else pruned), pruned


def _set(options: PruneOptions) -> str:
    """The options that are set."""
    values = {name: value for name, value in options.asdict().items() if value is not None and value is not False}
    return ", ".join(f"{k}={' '.join(v) if isinstance(v, tuple) else v}" for k, v in values.items())


def _to_score(options: PruneOptions) -> tuple[str | None, list[str]]:
    """(the text, the zero-shot tasks) that the model is scored on; a dry run scores nothing."""
    if options.dry_run:
        return None, []
    return text_to_score(options.eval_data, options.model), check_tasks(["usual"]) if options.eval_zero_shot else []


def _told(
    options: PruneOptions, decision: Decision, known: Known, pruned: Pruned, drawn: Drawn | None
) -> dict[str, Any]:
    """The fields of a report that the pruning itself tells."""
    used, calibration, scores = None, known.calibration, {}
    if calibration:
        used = Calibrated.of(calibration.data, calibration.nsamples, calibration.seq_len, drawn)
    notes = dict(pruned.notes)
    if isinstance(decision.method, ScoreAndCut):
        scores = quantiles(notes.pop("scores", {}), decision.draft.traced.groups)
    reconstruction = _reconstruction(notes) if isinstance(decision.method, Reconstruct) else None
    return {
        **_planned(options, decision.told(pruned.plan), pruned.config.model_type, size_of(pruned.model)),
        "calibration": used,
        "scores": scores,
        "reconstruction": reconstruction,
        "notes": {} if reconstruction else notes,
    }


def _planned(options: PruneOptions, plan: Plan, model_type: str, size: Size) -> dict[str, Any]:
    """The fields of a report that a plan tells. A width that differs between layers is a list with one for each."""
    return {
        "model": redact(options.model),
        "model_type": Sides(plan.model_type, model_type),
        "parameters": Sides(plan.parameters_before, size.parameters),
        "decoder_parameters": Sides(plan.decoder_before, plan.decoder_after),
        "bytes": Sides(plan.bytes_before, size.bytes),
        "widths": Sides(plan.before.by_field(), plan.widths_after()),
        "layers": Layers(plan.num_layers_before or len(plan.after), len(plan.after), plan.layers),
        "removed": {name: round(share, 6) for name, share in plan.removed().items()},
        "importance": plan.importance,
        "seed": plan.seed,
        "order": plan.order,
        "compensate": plan.compensate,
        "masked": options.mask_only,
    }


def _reconstruction(notes: dict[str, Any]) -> Reconstruction:
    """What a reconstruction notes for the report."""
    tried: dict[str, Any] = {
        name: [Tried(**one) for one in notes[name]] for name in ("search", "finals") if name in notes
    }
    return Reconstruction(**notes | tried)


def _texts(options: PruneOptions, decision: Decision, known: Known, origin: Origin, scored: bool):
    """(the tokenizer or None, calibration windows or None). scored: whether something is going to be scored."""
    calibration, drawn = None if known.measured else known.calibration, decision.drawn
    folder = origin.folder or origin.fetched
    tokenizer = load_tokenizer(folder, scored or calibration is not None and not drawn)
    if not has_tokenizer(folder):
        log("note: the model has no tokenizer, so none is saved")
    if calibration and not drawn:
        drawn = windows_drawn(calibration, options, origin.config, tokenizer)
    return tokenizer, drawn


def _loaded(options: PruneOptions, decision: Decision, config, folder: str):
    device = None if options.device_map else loading.pick_device(options.device)
    model = loading.load_model(folder, config, options.dtype, device, options.device_map)
    _check_against(decision, model)
    return model


def _config(options: PruneOptions, source: str):
    loading.check_family(source, options.revision)
    quiet()
    config = loading.load_config(source, options.revision)
    if options.dtype != "auto":
        config.dtype = options.dtype
    elif options.target_memory and config.dtype is None:
        raise UsageError(f"target_memory: the config.json of {options.model} names no dtype; give `dtype` too")
    return config


def _known(options: PruneOptions, decision: Decision, origin: Origin) -> Known:
    """UsageError when the calibration data is nothing, or --scores has scores of something else."""
    method, config = decision.method, origin.config
    if not isinstance(method, ScoreAndCut):
        return Known(calibration_of(options, method, config))
    scored = bool(decision.to_score)
    if options.dry_run and decision.plan is not None and not options.save_plan:
        # nothing has to be ranked to show the widths
        scored = False
    calibration = calibration_of(options, method, config) if method.needs(scored) - {WEIGHTS} else None
    if scored and not calibration and (options.calibration_data or options.nsamples or options.calibration_seq_len):
        log(f"note: importance {method.scorer.name} measures no activations, so there is nothing to calibrate")
    known = Known(calibration)
    if options.scores and scored:
        known = _with_scores(Path(options.scores).expanduser(), options, decision, known, origin)
    if options.dry_run and scored and not known.measured and not method.scorer.needs:
        bare = method.without_compensation()
        known = replace(known, measured=bare.measure(None, decision.draft, decision.to_score))
    return known


def _with_scores(path: Path, options: PruneOptions, decision: Decision, known: Known, origin: Origin) -> Known:
    method = decision.scoring
    model = checkpoint_digest(origin.source, origin.fetched)
    key = _key(options, decision, known.calibration, model)
    if not path.exists():
        return replace(known, key=key)
    measured = Measured(*score_cache.load(path, key, *method.sizes(decision.draft)))
    if method.compensate == "bias" and not measured.means:
        raise UsageError(f"`scores` {path} was made without `compensate=bias` and has no means; name another file")
    if missing := [group.name for group in decision.to_score if group.name not in measured.scores]:
        raise UsageError(f"`scores` {path} has none of {missing[0]}; name another file, or delete it")
    log(f"scores taken from {path}")
    return replace(known, key=key, measured=measured)


def _key(options: PruneOptions, decision: Decision, calibration: Calibration | None, model: str) -> dict[str, object]:
    """What scores are made from: two runs with the same key have the same scores. model: its digest."""
    scorer = decision.scoring.scorer
    key: dict[str, object] = {"model": model, "dtype": options.dtype, "importance": scorer.name, **scorer.options}
    if calibration:
        texts = [text_key(name) for name in listed(calibration.data)]
        key |= {
            "calibration_data": texts[0] if len(texts) == 1 else texts,
            "nsamples": calibration.nsamples,
            "calibration_seq_len": calibration.seq_len,
            "seed": options.seed,
        }
    if decision.tokens:
        key["vocabulary"] = decision.tokens.digest
    # its scores are of this shape only
    if scorer.sequential:
        key |= {"criterion": decision.scoring.order, "widths": [layer.by_field() for layer in decision.draft.widths]}
    return key


def _dry_plan(options: PruneOptions, decision: Decision, known: Known) -> Plan | None:
    """The plan of a dry run; None where a model has to be loaded for it."""
    if not isinstance(decision.method, ScoreAndCut):
        if isinstance(decision.draft.shape, Searched):
            log("note: this shape is where a search would start; without --dry_run others of this size are compared")
        if isinstance(decision.draft.shape, Open) and decision.plan:
            log("note: the numbers are those of the result; which layers lose what, the calibration text decides")
        return decision.plan
    to_score = decision.to_score if decision.plan is None or options.save_plan else []
    if to_score and not known.measured:
        return None
    return _finished(options, decision, known, known.measured or Measured())[0]


def _finished(
    options: PruneOptions, decision: Decision, known: Known, measured: Measured, model=None
) -> tuple[Plan, Any]:
    """(plan with its kept units, new configuration), shown if it was not known before, and saved where that is wanted.

    A dry run that saves nothing has no scores to choose units by.
    """
    method, made = decision.scoring, decision.draft
    plan, config = method.plan(made, measured, model)
    if decision.plan is None:
        _announce(plan, config, decision, options)
    if options.dry_run and not options.save_plan:
        return plan, config
    if plan.kept is None:
        told = asdict(known.calibration) if known.calibration else None
        plan = replace(method.with_units(plan, made, measured), calibration=told)
    if options.save_plan:
        decision.told(plan).save(Path(options.save_plan).expanduser())
        log(f"plan saved to {options.save_plan}")
    return plan, config


def _pruned(
    options: PruneOptions, decision: Decision, known: Known, model, drawn: Drawn | None, stopwatch, target: Path | None
) -> Pruned:
    """What the method makes of the model."""
    method, journal = decision.method, Journal(log, stopwatch)
    prompts = drawn.prompts if drawn else None
    if not isinstance(method, ScoreAndCut):
        pruned, outline = method.prune(model, decision.draft, prompts, journal), decision.plan
        told = pruned.plan.table(), pruned.config.model_type
        if outline is None or (outline.table(), decision.config.model_type) != told:
            _announce(pruned.plan, pruned.config, decision, options)
            _check_disk(target, pruned.plan, options)
        return pruned
    measured = known.measured or _measured(options, decision, known, model, prompts, stopwatch)
    plan, config = _finished(options, decision, known, measured, model)
    if options.dry_run:
        return Pruned(model, plan, config)
    _check_disk(target, plan, options)
    pruned = method.apply(model, decision.draft, plan, config, measured, journal)
    # for its biases
    if options.mask_only and pruned.config.model_type != plan.model_type:
        log(OWN_CLASS.format(pruned.config.model_type))
    return replace(pruned, notes={"scores": measured.scores})


def _measured(options: PruneOptions, decision: Decision, known: Known, model, prompts, stopwatch) -> Measured:
    method = decision.scoring
    with stopwatch("score"):
        of_any_shape = known.key and not method.scorer.sequential
        groups = method.scoreable(decision.draft) if of_any_shape else decision.to_score
        measured = method.measure(model, decision.draft, groups, prompts)
        if options.scores and known.key:
            score_cache.save(Path(options.scores).expanduser(), known.key, measured.scores, measured.means)
            log(f"scores saved to {options.scores}")
    return measured


def _check_disk(target: Path | None, plan: Plan | None, options: PruneOptions) -> None:
    if target and plan:
        check_disk(target, plan.bytes_before if options.mask_only else plan.bytes_after)


def _announce(plan: Plan, new_config, decision: Decision, options: PruneOptions) -> None:
    """The table, and what is worth knowing about the new configuration."""
    told = decision.told(plan)
    log(told.table(decision.requested(told)))
    if options.mask_only:
        log("note: masked only: every shape stays, the table shows the widths after a cut")
    elif "per_layer_widths" in plan.config:
        log(OWN_CLASS.format(new_config.model_type))
    elif new_config.model_type != plan.model_type:
        log(f"note: saved as {new_config.model_type}, which computes the same; {plan.model_type} refuses this shape")
    if plan.parameters_before >= BIG:
        for axis in (HIDDEN, MLP):
            width = plan.after[0][axis]
            if width % 64 and len({layer[axis] for layer in plan.after}) == 1:
                log(f"hint: {axis.field}={width} is not a multiple of 64: slow on GPUs; a ratio takes --round_to 64")


def _check_against(decision: Decision, model) -> None:
    """RunError when the model has other parameters than its config says.

    transformers unties an lm_head that a checkpoint stores beside the embeddings it is declared to share.
    """
    counter = decision.draft.traced.counter
    expected = counter.total(counter.full) + (decision.tokens.removed[0] if decision.tokens else 0)
    parameters = size_of(model).parameters
    if parameters != expected:
        raise RunError(
            f"the checkpoint has {parameters:,} parameters, its config.json says {expected:,}; "
            "if it holds an lm_head of its own, set tie_word_embeddings to false there"
        )
