"""The options of one run: one frozen dataclass; defaults < YAML < flags. Imports nothing heavy.

A string of the YAML stays a string: `5e-1`, which YAML 1.1 reads as text, is refused, not guessed at.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from llm_pruner.errors import UsageError, did_you_mean

MODEL, SHAPE, UNITS, OUTPUT, EVALUATION = (
    "model", "shape: how much goes", "units: which ones go", "output", "evaluation",
)  # fmt: skip


def option(default: Any, group: str, help: str, metavar: str | None = None, choices: tuple[str, ...] | None = None):
    return field(default=default, metadata={"group": group, "help": help, "metavar": metavar, "choices": choices})


@dataclass(frozen=True)
class Options:
    """Every option of `prune_llm.py`, by its flag's name."""

    model: str | None = option(None, MODEL, "local folder or hub id; `demo` is the small model that is built in")
    revision: str | None = option(None, MODEL, "branch, tag or commit of a hub model")
    dtype: str = option(
        "auto", MODEL, "dtype to load and save in; auto keeps the checkpoint's",
        choices=("auto", "float32", "bfloat16", "float16"),
    )  # fmt: skip
    device: str = option("auto", MODEL, "cpu, cuda, cuda:1 …; auto takes a GPU if there is one")
    device_map: str | None = option(
        None, MODEL, "spread the model over several devices, as in from_pretrained",
        choices=("auto", "balanced", "balanced_low_0", "sequential"),
    )  # fmt: skip
    pruning_ratio: float | None = option(
        None, SHAPE, "width ratio in [0, 1): hidden, heads and neurons each shrink by it; 0 makes a copy", "R"
    )
    prune: str = option(
        "hidden,heads,mlp", SHAPE, "what shrinks, of hidden, heads, kv_heads, mlp; each with its own ratio if wanted",
        "KIND[=R],…",
    )  # fmt: skip
    target: str | None = option(None, SHAPE, "explicit widths by config name, instead of a ratio", "NAME=WIDTH,…")
    round_to: int = option(1, SHAPE, "round hidden_size and intermediate_size to a multiple of N", "N")
    importance: str = option("magnitude", UNITS, "how units are scored", "NAME")
    seed: int = option(0, UNITS, "seed of everything random", "N")
    plan: str | None = option(None, UNITS, "replay a saved plan instead of making one", "FILE")
    save_plan: str | None = option(None, OUTPUT, "write the plan (kept units, new config) as JSON", "FILE")
    dry_run: bool = option(False, OUTPUT, "print the plan and stop; needs only the config.json")
    save_model: str | None = option(None, OUTPUT, "folder for the checkpoint; default pruned/<model>-r<ratio>", "DIR")
    no_save: bool = option(False, OUTPUT, "prune and score only")
    overwrite: bool = option(False, OUTPUT, "replace the checkpoint that is in the output folder")
    eval_data: str | None = option(None, EVALUATION, "wikitext2 (default), demo, a text file, or none", "NAME|FILE")
    max_seq_len: int = option(4096, EVALUATION, "tokens per window, at most max_position_embeddings", "N")
    batch_size: int | None = option(None, EVALUATION, "windows per forward pass; default: what fits", "N")
    traceback: bool = option(False, OUTPUT, "show where an error came from")

    def asdict(self) -> dict[str, Any]:
        return asdict(self)


SHAPES = ("pruning_ratio", "target", "plan")  # three ways to say how much, of which a run has one
UNUSED = {  # what else says the same as each of them, or says nothing beside it
    "pruning_ratio": (),
    "target": ("prune", "round_to"),
    "plan": ("prune", "round_to", "importance", "seed"),
}
FIELDS = {f.name: f for f in fields(Options)}


def kind_of(name: str) -> type:
    """bool, int, float or str."""
    declared = FIELDS[name].type
    return next(t for t in (get_args(declared) or (declared,)) if t is not type(None))


def resolve(flags: dict[str, Any], yaml_file: str | None = None) -> Options:
    """Defaults, then the YAML, then `flags` (only those given). UsageError for anything that cannot be meant.

    A flag that says the shape replaces all that the YAML says about it.
    """
    values = read_yaml(yaml_file) if yaml_file else {}
    own_ratios = all("=" in part for part in str(flags.get("prune", "-")).split(","))
    if own_ratios:
        values.pop("pruning_ratio", None)
    for shape, unused in UNUSED.items():
        if shape in flags:
            values = {name: value for name, value in values.items() if name not in (*SHAPES, *unused)}
    values |= flags
    options = Options(**{name: _typed(name, value) for name, value in values.items()})
    for shape, unused in UNUSED.items():
        if shape in values and (clash := [name for name in unused if name in values]):
            raise UsageError(f"{shape} already says what {clash[0]} would; leave one of them out")
    validate(options)
    return options


def _typed(name: str, value: Any) -> Any:
    kind = kind_of(name)
    if value is None and FIELDS[name].default is None:
        return None
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if type(value) is kind:
        return value
    legal = {float: "a number such as 0.5", int: "a whole number", bool: "true or false", str: "text"}[kind]
    if name == "pruning_ratio":
        legal = "a number with 0 <= ratio < 1, such as 0.5"
    raise UsageError(f"{name}: {value!r} is {type(value).__name__}, it must be {legal}")


def parse_flag(name: str, text: str) -> Any:
    """The value of a flag's text. UsageError with the value and what is legal."""
    kind = kind_of(name)
    if kind is str:
        return text
    try:
        return kind(text)
    except ValueError:
        return _typed(name, text)


def validate(options: Options) -> None:
    """UsageError for values out of range and for options that contradict each other."""
    from llm_pruner.widths import check_ratio, parse_prune

    if not options.model:
        raise UsageError("no model: give --model FOLDER, --model HUB_ID or --model demo")
    for name, f in FIELDS.items():
        value, choices = _typed(name, getattr(options, name)), f.metadata["choices"]
        if choices and value is not None and value not in choices:
            raise UsageError(f"{name}: {value!r}; {did_you_mean(value, choices)}")
    if options.pruning_ratio is not None:
        check_ratio(options.pruning_ratio, "pruning_ratio")
    for name, lowest in (("round_to", 1), ("max_seq_len", 2), ("batch_size", 1)):
        value = getattr(options, name)
        if value is not None and value < lowest:
            raise UsageError(f"{name}: {value} must be a whole number of at least {lowest}")
    shapes = [name for name in SHAPES if getattr(options, name) is not None]
    if len(shapes) > 1:
        raise UsageError(f"{' and '.join(shapes)} both say the shape; give one of them")
    if not shapes and "=" not in options.prune:
        raise UsageError("how much? give --pruning_ratio R with 0 <= R < 1, --target NAME=WIDTH or --plan FILE")
    if not (options.target or options.plan):
        parse_prune(options.prune, options.pruning_ratio)
        if options.pruning_ratio is not None and all("=" in part for part in options.prune.split(",")):
            raise UsageError(
                f"pruning_ratio {options.pruning_ratio:g} is not used: prune gives every kind its own ratio"
            )
    if options.no_save and options.save_model:
        raise UsageError("no_save and save_model contradict each other")
    if options.device_map and options.device != "auto":
        raise UsageError("device and device_map both say where the model goes; give one of them")
    from llm_pruner.importance import get

    get(options.importance)


def read_yaml(path: str) -> dict[str, Any]:
    """A flat mapping of option names. UsageError, with the line, for unknown or duplicate keys and odd tags."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path}{line}: {getattr(error, 'problem', None) or 'not YAML'}") from error
    except ValueError as error:  # a tagged scalar that is no such value
        raise UsageError(f"{path}: {error}") from error
    if root is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path} must be a mapping of option names to values")
    seen = set()
    for key, value in root.value:
        line = f"{path}, line {key.start_mark.line + 1}"
        if key.value not in FIELDS:
            raise UsageError(f"{line}: unknown option {key.value!r}; {did_you_mean(key.value, FIELDS)}")
        if key.value in seen:
            raise UsageError(f"{line}: {key.value!r} is set twice")
        seen.add(key.value)
        given = values[key.value]
        try:
            _typed(key.value, given)
        except UsageError as error:
            raise UsageError(f"{line}: {error}{_yaml_hint(given)}") from None
        if isinstance(given, float) and math.isnan(given):
            raise UsageError(f"{line}: {key.value}: {value.value!r} is not a number that can be meant")
    return values


def _yaml_hint(value: Any) -> str:
    if isinstance(value, str):
        try:
            return f" (YAML reads {value} as text; write {float(value)!r})"
        except ValueError:
            pass
    return ""
