"""The options of `python -m llm_pruner sparsify`. Imports nothing heavy."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_pruner.config import recipe as names
from llm_pruner.config.options import MOST_SEED, check_values, option, resolved
from llm_pruner.config.recipe import Recipe
from llm_pruner.errors import UsageError

MODEL, SPARSITY, CALIBRATION, EVALUATION, ZERO_SHOT, SWEEP, OUTPUT = (
    "model", "sparsity", "calibration", "evaluation", "zero-shot, by lm_eval", "sweep", "output",
)  # fmt: skip


@dataclass(frozen=True)
class SparsifyOptions:
    """Every option of `sparsify`, by its flag's name."""

    model: tuple[str, ...] | None = option(None, MODEL, "local folder, hub id or `demo`; several for a sweep", "DIR")
    revision: str | None = option(None, MODEL, "branch, tag or commit of a hub model")
    dtype: str = option(
        "auto", MODEL, "dtype to load in; auto keeps the checkpoint's",
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip
    device: str = option("auto", MODEL, "cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    device_map: str | None = option(
        None, MODEL, "spread the model over several devices, as in from_pretrained",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
    )  # fmt: skip
    sparse: str = option(
        names.ACTIVATIONS, SPARSITY, "what: the inputs of linear layers as they run, or their weights, once",
        choices=names.SPARSE,
    )  # fmt: skip
    n: int | None = option(None, SPARSITY, "so many of every m neighbours along the input dimension stay", "N", least=1)
    m: int | None = option(None, SPARSITY, "see n", "M", least=2)
    ratio: float | None = option(None, SPARSITY, "instead of n and m: the share that goes, such as 0.5", "R")
    select: str = option(
        names.TOKEN, SPARSITY, "of activations by ratio: of every token, or all below a threshold of each linear layer",
        choices=names.SELECTIONS,
    )  # fmt: skip
    criterion: str = option(
        names.MAGNITUDE, SPARSITY, "what ranks: |x|; wanda, times the norm of the weight's column (of weights: of what "
        "they read); l, times the channel's norm", choices=names.CRITERIA,
    )  # fmt: skip
    transform: str = option(
        names.NONE, SPARSITY, "of activations: variance (VAR), shift (PTS), learnable (trained on calibration text)",
        choices=names.TRANSFORMS,
    )  # fmt: skip
    scaling: bool = option(False, SPARSITY, "of activations: channels divided by √(max|x_j| / max|W_:j|)")
    spread: bool = option(
        False, SPARSITY, "n of m of activations: neighbours chosen so that every m have strong and weak channels"
    )
    causal: bool = option(
        False,
        SPARSITY,
        "variance and l see the token and the calibration text, not the rest of the sequence as published",
    )
    targets: tuple[str, ...] = option(
        names.TARGETS, SPARSITY, "linear layers: q,k,v,o,gate,up,down, or regular expressions of their names", "NAME"
    )
    calibration_data: str | None = option(
        None, CALIBRATION, "wikitext2 (default), c4, alpaca, demo or a text file; read where the method needs it",
        "NAME|FILE",
    )  # fmt: skip
    nsamples: int = option(128, CALIBRATION, "windows of it", "N", least=1)
    calibration_seq_len: int = option(128, CALIBRATION, "tokens of each", "N", least=2)
    epochs: int = option(4, CALIBRATION, "learnable: passes over them", "N", least=1)
    eval_data: str | None = option(None, EVALUATION, "wikitext2 (default), demo, a text file, or none", "NAME|FILE")
    max_seq_len: int = option(4096, EVALUATION, "tokens per window, at most max_position_embeddings", "N", least=2)
    eval_stride: int = option(1, EVALUATION, "score every so many windows, for a quicker look", "N", least=1)
    batch_size: int | None = option(
        None, EVALUATION, "windows, or questions, per forward pass; default: what fits", "N", least=1
    )
    tasks: tuple[str, ...] | None = option(
        None, ZERO_SHOT, "lm_eval's tasks by name, or YAML files of local ones; `usual` for the usual six", "TASK,…"
    )
    num_fewshot: int | None = option(None, ZERO_SHOT, "examples in the prompt; default: the task's", "N", least=0)
    apply_chat_template: bool = option(False, ZERO_SHOT, "ask in the tokenizer's chat template")
    limit: int | None = option(None, ZERO_SHOT, "only the first N questions of each task, for a try", "N", least=1)
    patterns: tuple[str, ...] | None = option(
        None, SWEEP, "YAML files, beside the sweep's own: each is run on each model", "FILE"
    )
    folder: str | None = option(
        None, SWEEP, "where a sweep keeps a JSON for each run and its table; what is there is not run again", "DIR"
    )
    save_model: str | None = option(None, OUTPUT, "save the sparse model to this folder", "DIR")
    report: str | None = option(None, OUTPUT, "write what was measured as JSON", "FILE")
    overwrite: bool = option(False, OUTPUT, "replace the report or the checkpoint that is there")
    seed: int = option(0, OUTPUT, "seed of everything random", "N", least=0, most=MOST_SEED)
    config: str | None = option(None, "options file", "YAML with any of the other options; flags win over it", "FILE")
    traceback: bool = option(False, OUTPUT, "show where an error came from")

    flags: tuple[str, ...] = ()  # no option: those that were typed, which win over a sweep's patterns

    def asdict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "flags"}

    @property
    def recipe(self) -> Recipe:
        return Recipe.of(self)


def resolve(flags: dict[str, Any], yaml_file: str | None = None) -> SparsifyOptions:
    """Defaults < YAML < flags. UsageError for anything that cannot be meant."""
    options = resolved(SparsifyOptions, flags, yaml_file)
    values = options.asdict() | {"targets": parts(options.targets)}
    values["flags"] = tuple(flags)
    if options.patterns and yaml_file and "patterns" not in flags:
        values["patterns"] = tuple(str(Path(yaml_file).parent / name) for name in options.patterns)
    options = SparsifyOptions(**values)
    validate(options)
    return options


def parts(targets: tuple[str, ...]) -> tuple[str, ...]:
    """`q,k,v` as three; a regular expression may have commas of its own."""
    found: list[str] = []
    for target in targets:
        split = [part.strip() for part in target.split(",")]
        found += split if all(part in names.TARGETS for part in split) else [target]
    return tuple(dict.fromkeys(found))


def validate(options: SparsifyOptions) -> None:
    """UsageError for values out of range and for options that contradict each other."""
    check_values(options)
    if not options.model:
        raise UsageError("no model: give --model DIR")
    if options.device_map and options.device != "auto":
        raise UsageError("device and device_map both say where the model goes; give one of them")
    if not options.tasks:
        for name in ("num_fewshot", "apply_chat_template", "limit"):
            if getattr(options, name) not in (None, False):
                raise UsageError(f"{name} is about zero-shot tasks; give --tasks")
    if options.patterns:
        _validate_sweep(options)
    else:
        _validate_run(options)


def _validate_sweep(options: SparsifyOptions) -> None:
    if not options.folder:
        raise UsageError("a sweep keeps its results in a folder; give --folder DIR")
    for name in ("save_model", "report"):
        if getattr(options, name):
            raise UsageError(f"{name} is for one run; a sweep keeps its reports in --folder")
    plain = SparsifyOptions()
    for name in names.Recipe.__dataclass_fields__:
        if getattr(options, name) != getattr(plain, name):
            raise UsageError(f"{name} belongs to the sweep's patterns, not to the sweep itself")


def _validate_run(options: SparsifyOptions) -> None:
    if options.folder:
        raise UsageError("folder is where a sweep keeps its runs; a sweep has --patterns too")
    if len(options.model) > 1:
        raise UsageError("several models are for a sweep, which has --patterns; give one")
    if options.eval_data == "none" and not (options.tasks or options.save_model):
        raise UsageError("nothing to do: give --eval_data, --tasks or --save_model")
    validate_recipe(options.recipe)


def validate_recipe(recipe: Recipe) -> None:
    """UsageError for a recipe that means nothing."""
    if (recipe.n is None) != (recipe.m is None) or (recipe.m is None) == (recipe.ratio is None):
        raise UsageError("how sparse: give n and m, such as 8 and 16, or ratio, such as 0.5")
    if recipe.m and recipe.n >= recipe.m:
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
    if recipe.spread and not recipe.m:
        raise UsageError("spread is about neighbours: it goes with n and m")
    if recipe.sparse == names.WEIGHTS:
        for name in ("select", "transform", "scaling", "spread", "causal"):
            if getattr(recipe, name) != getattr(Recipe(), name):
                raise UsageError(f"{name} is about activations; weights have none")
        if recipe.criterion == names.L_CRITERION:
            raise UsageError("criterion l is about activations; weights have magnitude and wanda")
