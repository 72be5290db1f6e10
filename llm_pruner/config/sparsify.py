"""The options of `sparsify`. Imports nothing heavy."""

import re
from pathlib import Path
from typing import Any

from llm_pruner.config import recipe as names
from llm_pruner.config.groups import (
    CALIBRATION,
    EVALUATION,
    SPARSITY,
    SWEEP,
    CalibrationOptions,
    EpochOptions,
    EvaluationOptions,
    FolderOptions,
    LoadingOptions,
    ModelOptions,
    ReportOptions,
    RevisionOptions,
    RunOptions,
    SavingOptions,
    ZeroShotOptions,
    check_placement,
    check_zero_shot,
)
from llm_pruner.config.options import check_values, command_options, option, resolved
from llm_pruner.config.recipe import Recipe
from llm_pruner.errors import UsageError

PROGRAM = "llm-pruner sparsify"


@command_options(
    model={"help": "local folder, hub id or `demo`; several for a sweep", "kind": tuple},
    epochs={"default": 4, "help": "learnable: passes over the calibration text", "least": 1, "most": None,
            "group": CALIBRATION},
    calibration_data={
        "help": "texts to calibrate on if needed, as of prune; default: wikitext2", "common": False
    },
    nsamples={"default": 128, "help": "number of calibration windows", "most": None, "common": False},
    calibration_seq_len={"default": 128, "help": "tokens per calibration window", "most": None},
    batch_size={"help": "windows or questions per forward pass; default: as many as fit"},
    folder={"help": "folder for a sweep's table and a JSON for each run; finished runs are not repeated",
            "common": False},
)  # fmt: skip
class SparsifyOptions(
    RunOptions,
    FolderOptions,
    SavingOptions,
    ReportOptions,
    ZeroShotOptions,
    EvaluationOptions,
    CalibrationOptions,
    EpochOptions,
    LoadingOptions,
    RevisionOptions,
    ModelOptions,
):
    """Every option of `sparsify`, by its flag's name."""

    sparse: str = option(
        names.ACTIVATIONS, SPARSITY, "make the inputs of linear layers sparse as they run, or their weights, once",
        choices=names.SPARSE, common=True,
    )  # fmt: skip
    n: int | None = option(
        None, SPARSITY, "number of values that stay of every m neighbours along the input dimension", "N", kind=int,
        least=1, common=True,
    )  # fmt: skip
    m: int | None = option(None, SPARSITY, "number of neighbours of which n stay", "M", kind=int, least=2, common=True)
    ratio: float | None = option(
        None, SPARSITY, "share of the values to remove, such as 0.5, instead of n and m", "R", kind=float, common=True
    )
    select: str = option(
        names.TOKEN, SPARSITY, "with --ratio: remove that share of every token, or all below a threshold of each layer",
        choices=names.SELECTIONS,
    )  # fmt: skip
    criterion: str = option(
        names.MAGNITUDE, SPARSITY, "score of a value: |x|; wanda: times the norm of the weight's column (for "
        "weights: of their input); l: times the norm of the channel", choices=names.CRITERIA,
    )  # fmt: skip
    transform: str = option(
        names.NONE, SPARSITY, "correction of activations: variance (VAR), shift (PTS), learnable (by calibration text)",
        choices=names.TRANSFORMS,
    )  # fmt: skip
    scaling: bool = option(
        False, SPARSITY, "divide the channels of activations by √(max|x_j| / max|W_:j|) to select", kind=bool
    )
    permutation: bool = option(
        False, SPARSITY, "with --n and --m: permute channels, so that every m hold strong and weak ones", kind=bool
    )
    causal: bool = option(
        False, SPARSITY, "let variance and l use the token and the calibration text, not the whole sequence as "
        "published", kind=bool,
    )  # fmt: skip
    targets: tuple[str, ...] = option(
        names.TARGETS, SPARSITY, "linear layers to make sparse: q, k, v, o, gate, up, down, or regular "
        "expressions", "NAME", kind=tuple,
    )  # fmt: skip
    eval_stride: int = option(1, EVALUATION, "score every so many windows, for a quicker look", "N", kind=int, least=1)
    patterns: tuple[str, ...] | None = option(
        None,
        SWEEP,
        "YAML files of recipes, each run on each model; a YAML names those beside it",
        "FILE",
        kind=tuple,
    )
    # No option: those that were typed, which win over a sweep's patterns.
    flags: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe:
        """What is made sparse and how."""
        return Recipe.of(self)


def resolve(flags: dict[str, Any], yaml_file: str | None = None) -> SparsifyOptions:
    """Return the options: defaults < YAML < flags. UsageError for anything that cannot be meant."""
    options = resolved(SparsifyOptions, flags, yaml_file)
    values = options.asdict() | {"targets": parts(options.targets)}
    values["flags"] = tuple(flags)
    if options.patterns and yaml_file and "patterns" not in flags:
        values["patterns"] = tuple(str(Path(yaml_file).parent / name) for name in options.patterns)
    options = SparsifyOptions(**values)
    validate(options)
    return options


def parts(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return `q,k,v` as three; a regular expression may have commas of its own."""
    found: list[str] = []
    for target in targets:
        split = [part.strip() for part in target.split(",")]
        found += split if all(part in names.TARGETS for part in split) else [target]
    return tuple(dict.fromkeys(found))


def validate(options: SparsifyOptions) -> None:
    """Raise a UsageError for values out of range and for options that contradict each other."""
    check_values(options)
    if not options.model:
        raise UsageError("no model: give `model`")
    check_placement(options)
    check_zero_shot(options)
    if options.patterns:
        _validate_sweep(options)
    else:
        _validate_run(options)


def _validate_sweep(options: SparsifyOptions) -> None:
    if not options.folder:
        raise UsageError("a sweep keeps its results in a folder; give `folder`")
    for name in ("save_model", "report"):
        if getattr(options, name):
            raise UsageError(f"{name} is for one run; a sweep keeps its reports in `folder`")
    plain = SparsifyOptions()
    for name in names.Recipe.__dataclass_fields__:
        if getattr(options, name) != getattr(plain, name):
            raise UsageError(f"{name} belongs to the sweep's patterns, not to the sweep itself")


def _validate_run(options: SparsifyOptions) -> None:
    if options.folder:
        raise UsageError("folder is where a sweep keeps its runs; a sweep has `patterns` too")
    if len(options.model) > 1:
        raise UsageError("several models are for a sweep, which has `patterns`; give one")
    if options.eval_data == "none" and not (options.tasks or options.save_model):
        raise UsageError("nothing to do: give `eval_data`, `tasks` or `save_model`")
    validate_recipe(options.recipe)


def validate_recipe(recipe: Recipe) -> None:
    """Raise a UsageError for a recipe that means nothing."""
    if (recipe.n is None) != (recipe.m is None) or (recipe.m is None) == (recipe.ratio is None):
        raise UsageError("how sparse: give n and m, such as 8 and 16, or ratio, such as 0.5")
    if recipe.m and recipe.n is not None and recipe.n >= recipe.m:
        raise UsageError(
            f"n: {recipe.n} of {recipe.m} would keep everything; it must be a whole number with 1 <= n < m"
        )
    if recipe.ratio is not None and not 0 < recipe.ratio < 1:
        raise UsageError(f"ratio: {recipe.ratio} must be a number with 0 < ratio < 1")
    if not recipe.targets:
        raise UsageError("targets: none; leave it out for all linear layers")
    for target in recipe.targets:
        if not target:
            raise UsageError("targets: '' means nothing; leave it out for all linear layers")
        try:
            re.compile(target)
        except re.error as error:
            raise UsageError(
                f"targets: {target!r} is none of {','.join(names.TARGETS)} and no pattern: {error}"
            ) from error
    if recipe.m and recipe.select == names.THRESHOLD:
        raise UsageError("select threshold goes with ratio; n of m are of every token")
    if recipe.select == names.THRESHOLD and recipe.criterion == names.L_CRITERION and not recipe.causal:
        raise UsageError(
            "criterion l with a threshold needs causal: its norms must be those that it was calibrated with"
        )
    if recipe.permutation and not recipe.m:
        raise UsageError("permutation is about neighbours: it goes with n and m")
    if recipe.sparse == names.WEIGHTS:
        for name in ("select", "transform", "scaling", "permutation", "causal"):
            if getattr(recipe, name) != getattr(Recipe(), name):
                raise UsageError(f"{name} is about activations; weights have none")
        if recipe.criterion == names.L_CRITERION:
            raise UsageError("criterion l is about activations; weights have magnitude and wanda")
