"""From the options of `prune` to a request and a method; and which options go together."""

from dataclasses import replace
from typing import Any

from llm_pruner.calibration.mixtures import listed
from llm_pruner.config.groups import check_placement
from llm_pruner.config.options import check_values, read_yaml, typed
from llm_pruner.config.prune import BUDGETS, FIELDS, PruneOptions
from llm_pruner.config.quantities import check_ratio, parse_bytes, parse_parameters
from llm_pruner.errors import UsageError
from llm_pruner.importance import CRITERIA, criterion_of
from llm_pruner.importance.criterion import Criterion
from llm_pruner.model.axes import HIDDEN, VOCAB
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Budget, Ratio, Replay, Request, Target, check_scored
from llm_pruner.shape.widths import parse_prune, whole_width
from llm_pruner.vocabulary.choice import Wanted

# the ways to say how much, of which a run has one
SHAPES = (*BUDGETS, "target", "plan")
STRUCTURE = ("structure", "remove_heads", "uniform")
SCORING = ("importance", "order", "metrics", "taylor", "compensate", "mask_only", "scores", "plan", *STRUCTURE)
OF_RECONSTRUCTION = ("per_layer", "search_minutes", "epochs", "global_epochs", "work_dir")
# and those that are no options of the method itself
WANT_RECONSTRUCTION = (*OF_RECONSTRUCTION, "further_ratios")
# the budgets that a search can meet
PARAMETERS = ("param_ratio", "target_params", "target_memory")
# what else says the same as each of them, or says nothing beside it
UNUSED = {
    **dict.fromkeys(BUDGETS, ("further_ratios",)),
    "param_ratio": (),
    "target": ("prune", "round_to", "further_ratios", *STRUCTURE),
    "plan": (
        "prune",
        "round_to",
        "method",
        "importance",
        "order",
        "metrics",
        "taylor",
        "scores",
        "seed",
        *STRUCTURE,
        *WANT_RECONSTRUCTION,
    ),
}


def resolve(flags: dict[str, Any], yaml_file: str | None = None) -> PruneOptions:
    """Return the options: defaults, then the YAML, then the flags. UsageError for anything that cannot be meant.

    A flag that says the shape replaces all that the YAML says about it.

    Args:
        flags: Only those that were given.
        yaml_file: A YAML file with options.
    """
    values = read_yaml(yaml_file, FIELDS) if yaml_file else {}
    if _own_ratios(flags.get("prune")):
        values = {name: value for name, value in values.items() if name not in (*BUDGETS, *STRUCTURE, "further_ratios")}
    if "iteration" in flags or str(flags.get("structure")).endswith("MM"):
        values.pop("prune", None)
    if "importance" in flags:
        values = {name: value for name, value in values.items() if name not in ("metrics", "taylor")}
    if "method" in flags:
        values = {name: value for name, value in values.items() if name not in (*SCORING, "save_plan")}
    elif set(SCORING) & set(flags):
        values = {name: value for name, value in values.items() if name not in ("method", *WANT_RECONSTRUCTION)}
    for shape, unused in UNUSED.items():
        if shape in flags:
            values = {name: value for name, value in values.items() if name not in (*SHAPES, *unused)}
    if "structure" in flags:
        values = {name: value for name, value in values.items() if name not in STRUCTURE}
    values |= flags
    options = PruneOptions(**{name: typed(FIELDS[name], value) for name, value in values.items()})
    for shape, unused in UNUSED.items():
        if shape in values and (clash := [name for name in unused if name in values]):
            raise UsageError(f"{shape} and {clash[0]} exclude each other; leave one of them out")
    validate(options)
    return options


def wants_reconstruction(options: PruneOptions) -> bool | None:
    """Return whether a method is named, or a reconstruction asked for by an option of its own; None: nothing is said.

    False where something is said that goes with scores only.
    """
    if options.method:
        return True
    if asked_of(options, (*SCORING, "save_plan", "iteration")):
        return False
    return True if asked_of(options, WANT_RECONSTRUCTION) else None


def asked_of(options: PruneOptions, names: tuple[str, ...]) -> list[str]:
    """Return those of `names` that are not at their default."""
    return [name for name in names if getattr(options, name) != FIELDS[name].default]


def validate(options: PruneOptions) -> None:
    """Raise a UsageError for values out of range and for options that contradict each other."""
    if not options.model:
        raise UsageError("no model: give `model`, a folder, a hub id or demo")
    validate_pruning(options)
    if options.no_save and options.save_model:
        raise UsageError("no_save and save_model contradict each other")
    if options.recover and (options.no_save or options.dry_run):
        raise UsageError(
            f"recover trains the saved checkpoint; leave out {'no_save' if options.no_save else 'dry_run'}"
        )
    if options.mask_only and without_vocabulary(options)[1]:
        raise UsageError(f"mask_only keeps every shape, and `prune={VOCAB.name}` removes rows; leave one of them out")
    check_placement(options)


def validate_pruning(options: PruneOptions) -> None:
    """Raise a UsageError as `validate`, as far as it is about shape and units."""
    check_values(options)
    options, wanted = without_vocabulary(options)
    if options.vocab_data and not wanted:
        raise UsageError(f"vocab_data is the text whose tokens `prune={VOCAB.name}` counts; give that too")
    for name in ("pruning_ratio", "param_ratio"):
        if getattr(options, name) is not None:
            check_ratio(getattr(options, name), name)
    shapes = [name for name in SHAPES if getattr(options, name) is not None]
    if len(shapes) > 1:
        raise UsageError(f"{' and '.join(shapes)} both set the shape; give one of them")
    if not shapes and not wanted and "=" not in (options.prune or ""):
        raise UsageError(
            "how much? give `pruning_ratio=R` with 0 <= R < 1, `param_ratio=R`, `target_params=N`, "
            "`target_memory=SIZE`, `iteration=N`, `target=NAME=WIDTH` or `plan=FILE`"
        )
    if options.prune is not None:
        parse_prune(options.prune, options.pruning_ratio if shapes in ([], ["pruning_ratio"]) else 0.0)
        if shapes and _own_ratios(options.prune):
            raise UsageError(
                f"{shapes[0]} {getattr(options, shapes[0])} is not used: prune gives every axis its own ratio"
            )
        if "=" in options.prune and (options.structure or shapes not in ([], ["pruning_ratio"])):
            raise UsageError("`prune` with ratios goes with `pruning_ratio` only; name the axes without ratios")
    if options.target_params is not None:
        parse_parameters(options.target_params, "target_params")
    if options.target_memory is not None:
        parse_bytes(options.target_memory, "target_memory")
    _validate_reconstruction(options)
    _validate_units(options, shapes)


def _own_ratios(prune: str | None) -> bool:
    others = _parts(prune, but=VOCAB.name)
    return bool(others) and all("=" in part for part in others)


def _parts(text: str | None, but: str = "") -> list[str]:
    """The parts of a list, without that of one name."""
    parts = [part.strip() for part in (text or "").split(",")]
    return [part for part in parts if part and part.partition("=")[0].strip() != but]


def without_vocabulary(options: PruneOptions) -> tuple[PruneOptions, Wanted | None]:
    """Return the options without what they say about the vocabulary, and that; None where no token should go.

    A ratio of widths is one for the vocabulary too, where `prune` names that without a ratio of its own.

    Args:
        options: The options. What a plan says about the vocabulary is not among them.

    Raises:
        UsageError: The vocabulary is named twice, or by what is no ratio or number.
    """
    for option, name in (("prune", VOCAB.name), ("target", VOCAB.field)):
        text = getattr(options, option)
        others, own = _parts(text, but=name), [part for part in _parts(text) if part not in _parts(text, but=name)]
        if not own:
            continue
        if len(own) > 1:
            raise UsageError(f"`{option}` names {name!r} twice")
        value = own[0].partition("=")[2].strip()
        left = ",".join(others) or None
        if option == "target":
            return replace(options, target=left), Wanted(size=whole_width(name, value))
        rest = replace(options, prune=left)
        ratio = check_ratio(value, f"`prune` {name}") if value else options.pruning_ratio
        if ratio == 0:
            # a copy, unless something else shrinks
            return rest if left or asked_of(rest, SHAPES) else replace(rest, pruning_ratio=0.0), None
        return rest if left or value else replace(rest, pruning_ratio=None), Wanted(ratio=ratio)
    return options, None


def _validate_reconstruction(options: PruneOptions) -> None:
    if wants_reconstruction(options) is False and (unused := asked_of(options, WANT_RECONSTRUCTION)):
        raise UsageError(f"`{unused[0]}` belongs to `method=reconstruct`; leave it out, or what names another method")
    if options.per_layer and not any(getattr(options, name) is not None for name in PARAMETERS):
        raise UsageError(f"per_layer shares a budget out: give one of {', '.join(PARAMETERS)}")
    _validate_further(options)
    if options.per_layer and HIDDEN in parse_prune(options.prune or "mlp", 0.0):
        raise UsageError(
            "per_layer shares a budget out among layers, and hidden belongs to all: leave it out of `prune`"
        )
    if not options.method:
        return
    if clash := asked_of(options, SCORING):
        raise UsageError(f"method {options.method} and {clash[0]} both choose the units; leave one of them out")
    if options.save_plan:
        raise UsageError("save_plan lists units that scores chose; a method may make new weights, which no plan holds")


def _validate_further(options: PruneOptions) -> None:
    ratios = further_ratios(options)
    if not ratios:
        return
    if not options.param_ratio:
        raise UsageError("further_ratios follow a first one above 0: give `param_ratio`")
    if list(ratios) != sorted({options.param_ratio, *ratios})[1:]:
        raise UsageError(
            f"further_ratios: {options.further_ratios} must be larger and larger than `param_ratio` "
            f"{options.param_ratio:g}, since each model is made of the one before"
        )
    if (options.method or "reconstruct").partition(":")[0] != "reconstruct":
        raise UsageError(f"further_ratios belong to `method=reconstruct`, not to {options.method}; run it for each")
    if options.global_epochs == 0:
        raise UsageError("further_ratios are optimised towards the dense model; leave out `global_epochs=0`")
    if HIDDEN in parse_prune(options.prune or "mlp", 0.0):
        raise UsageError("further_ratios take heads and neurons; leave hidden out of `prune`")
    if options.recover:
        raise UsageError("recover trains one checkpoint; leave out further_ratios, and train each of them afterwards")


def further_ratios(options: PruneOptions) -> tuple[float, ...]:
    """Return the ratios behind the first. UsageError where one is none."""
    parts = (options.further_ratios or "").split(",") if options.further_ratios else ()
    return tuple(check_ratio(part.strip(), "further_ratios") for part in parts)


def _validate_units(options: PruneOptions, shapes: list[str]) -> None:
    criterion = criterion_named(options)
    structure = options.structure or ""
    if structure and not set(shapes) & set(BUDGETS):
        raise UsageError(f"structure {structure} shares a budget out: give one of {', '.join(BUDGETS)}")
    if options.round_to > 1 and (structure or shapes not in ([], ["pruning_ratio"])):
        raise UsageError("round_to goes with width ratios; a budget of parameters or a structure sets widths itself")
    if not options.plan:
        request_of(options)
    if options.prune and not options.method:
        check_scored(parse_prune(options.prune, 0.0), criterion)


def criterion_named(options: PruneOptions) -> Criterion:
    """Return the criterion that the options name, with its own options. UsageError as in `criterion_of`."""
    own = {name: getattr(options, name) for name in ("metrics", "taylor")}
    return criterion_of(options.importance or "magnitude", own, {"seed": options.seed})


def request_of(options: PruneOptions) -> Request:
    """Return how much should go, of options without a vocabulary. UsageError where they contradict each other."""
    if options.plan:
        return Replay(Plan.load(options.plan), f"`plan` {options.plan}")
    if options.target:
        return Target(options.target)
    others = [name for name in BUDGETS if name != "pruning_ratio" and getattr(options, name) is not None]
    if not options.structure and not others:
        if options.prune:
            return Ratio(parse_prune(options.prune, options.pruning_ratio), options.round_to)
        # without a ratio, nothing but tokens goes
        return Ratio(options.pruning_ratio or 0.0, options.round_to)
    return Budget(
        param_ratio=options.param_ratio,
        params=options.target_params,
        memory=options.target_memory,
        iteration=options.iteration,
        ratio=options.pruning_ratio,
        axes=tuple(parse_prune(options.prune, 0.0)) if options.prune else None,
        structure=options.structure,
        remove_heads=options.remove_heads,
        uniform=options.uniform,
    )


def replayed(options: PruneOptions, request: Request) -> PruneOptions:
    """Return the options with what a plan to replay says about how it was made, where they say nothing themselves."""
    if not isinstance(request, Replay):
        return options
    plan = request.plan
    calibration = plan.calibration or {}
    return replace(
        options,
        importance=plan.importance if plan.importance in CRITERIA else options.importance,
        seed=plan.seed,
        compensate=options.compensate or plan.compensate,
        calibration_data=options.calibration_data or listed(calibration.get("data")) or None,
        nsamples=options.nsamples or calibration.get("nsamples"),
        calibration_seq_len=options.calibration_seq_len or calibration.get("seq_len"),
    )
