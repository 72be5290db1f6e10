"""`prune`, in a straight line.

options → request, method → draft of config.json          --dry_run stops here, unless scores decide the shape
→ texts → model → perplexity → method.prune → perplexity → staged, verified, published → report
                                    └──── once for each of --further_ratios ─────┘
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_pruner.calibration.mixtures import Drawn, listed, text_key
from llm_pruner.calibration.needs import WEIGHTS
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.calibration.windows import bytes_per_token
from llm_pruner.cli.calibrating import calibration_of, completed, windows_drawn
from llm_pruner.cli.deciding import Decision, Pruning, decided, further_prunings
from llm_pruner.cli.keeping import Keeper
from llm_pruner.cli.requests import replayed, request_of, validate, without_vocabulary
from llm_pruner.cli.vocabulary import Origin, scratch, with_vocabulary
from llm_pruner.config.prune import PruneOptions
from llm_pruner.console import log, quiet
from llm_pruner.errors import PlanError, RunError, UsageError
from llm_pruner.evaluation.scores import Measurement, text_to_score, windows_of
from llm_pruner.evaluation.tasks import check_tasks
from llm_pruner.files import checkpoint_digest
from llm_pruner.importance import score_cache
from llm_pruner.methods import Journal, Measured, Pruned, Reconstruct, ScoreAndCut
from llm_pruner.model import loading
from llm_pruner.model.axes import HIDDEN, MLP, VOCAB
from llm_pruner.model.size import size_of
from llm_pruner.model.tokenizers import has_tokenizer, load_tokenizer
from llm_pruner.output import checkpoint, lineage
from llm_pruner.output.conditions import Stopwatch
from llm_pruner.output.exporters import exporters_called
from llm_pruner.output.places import check_disk, check_outputs
from llm_pruner.output.reports import PruneReport
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
        prunings = [Pruning(asked, decision, target), *further_prunings(asked, origin, source)]
    for pruning in prunings:
        if pruning.decision.plan:
            _announce(pruning.decision.plan, pruning.decision.config, pruning.decision, pruning.options)
    known = _known(asked, decision, origin)
    if asked.dry_run and (plan := _dry_plan(asked, decision, known)):
        return decision.told(plan)
    _check_disk(prunings)
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
    keeper = Keeper(
        options, argv, origin, known.calibration, tokenizer, drawn, made_from, (dense, measurement), before, finite,
        exporters, stopwatch,
    )  # fmt: skip
    made: list[PruneReport] = []
    for pruning, pruned in _pruned(prunings, known, model, drawn, stopwatch):
        if asked.dry_run:
            return decision.told(pruned.plan)
        made.append(keeper.kept(pruning, pruned))
        # memory and seconds are the next one's
        del pruned
        stopwatch.seconds.clear()
    return made[0]


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
    prunings: Sequence[Pruning], known: Known, model, drawn: Drawn | None, stopwatch: Stopwatch
) -> Iterator[tuple[Pruning, Pruned]]:
    """What the method makes of the model, of each pruning."""
    first, prompts = prunings[0], drawn.prompts if drawn else None
    method, journal = first.decision.method, Journal(log, stopwatch)
    if isinstance(method, ScoreAndCut):
        yield first, _scored_and_cut(first, known, model, prompts, stopwatch)
        return
    drafts = [pruning.decision.draft for pruning in prunings]
    if isinstance(method, Reconstruct):
        made = method.prune_successively(model, drafts, prompts, journal)
    else:
        made = iter([method.prune(model, drafts[0], prompts, journal)])
    for place, pruning in enumerate(prunings):
        pruned = next(made)
        outline, told = pruning.decision.plan, (pruned.plan.table(), pruned.config.model_type)
        if outline is None or (outline.table(), pruning.decision.config.model_type) != told:
            _announce(pruned.plan, pruned.config, pruning.decision, pruning.options)
            _check_disk(prunings[place:], pruned.plan)
        yield pruning, pruned
        # the next one needs the memory
        del pruned


def _scored_and_cut(pruning: Pruning, known: Known, model, prompts, stopwatch: Stopwatch) -> Pruned:
    """The model cut as its units' scores say; of a dry run only the plan."""
    options, decision = pruning.options, pruning.decision
    method, journal = decision.scoring, Journal(log, stopwatch)
    measured = known.measured or _measured(options, decision, known, model, prompts, stopwatch)
    plan, config = _finished(options, decision, known, measured, model)
    if options.dry_run:
        return Pruned(model, plan, config)
    _check_disk([pruning], plan)
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


def _check_disk(prunings: Sequence[Pruning], plan: Plan | None = None) -> None:
    """RunError when the checkpoints have no room, all together. plan: of the first, where its draft knew none."""
    plans = [plan or prunings[0].decision.plan, *(pruning.decision.plan for pruning in prunings[1:])]
    sizes = [
        own.bytes_before if pruning.options.mask_only else own.bytes_after
        for pruning, own in zip(prunings, plans, strict=True)
        if own
    ]
    if prunings[0].target and sizes:
        check_disk(prunings[0].target, sum(sizes))


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
