"""Groups of options that several commands have: each is declared once, and a flag means the same everywhere."""

from dataclasses import dataclass
from typing import Any

from llm_pruner.config.limits import MOST_SEED, MOST_TOKENS
from llm_pruner.config.options import BaseOptions, option
from llm_pruner.errors import UsageError

# of the help, in their order
SECTIONS = (
    MODEL, SHAPE, UNITS, SPARSITY, METHOD, DATA, TRAINING, SHARED, CALIBRATION, SWEEP, EVALUATION, ZERO_SHOT, SPEED,
    OUTPUT, RUN,
) = (
    "model", "shape: how much goes", "units: which ones go", "sparsity", "method", "training data", "training",
    "shared by the stages, where a section says nothing else", "calibration", "sweep", "evaluation",
    "zero-shot, by lm_eval", "speed", "output", "run",
)  # fmt: skip
DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
USUAL_TASKS = ("piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "boolq")


@dataclass(frozen=True)
class ModelOptions(BaseOptions):
    """What is worked on."""

    model: Any = option(
        None, MODEL, "local folder or hub id; `demo` is the small model that is built in", "DIR", common=True
    )


@dataclass(frozen=True)
class RevisionOptions(BaseOptions):
    """Which version of a model."""

    revision: str | None = option(None, MODEL, "branch, tag or commit of a hub model")


@dataclass(frozen=True)
class DeviceOptions(BaseOptions):
    """Where it is computed."""

    device: Any = option("auto", MODEL, "cpu, cuda, cuda:1 …; auto takes a GPU if there is one", common=True)


@dataclass(frozen=True)
class DtypeOptions(DeviceOptions):
    """In which precision it is computed."""

    dtype: Any = option(
        "auto", MODEL, "dtype to load and save in; auto keeps the checkpoint's", choices=DTYPES, common=True
    )


@dataclass(frozen=True)
class LoadingOptions(DtypeOptions):
    """How a model is spread over devices."""

    device_map: str | None = option(
        None, MODEL, "spread the model over several devices, as in from_pretrained", choices=DEVICE_MAPS
    )


@dataclass(frozen=True)
class EpochOptions(BaseOptions):
    """How long something learns."""

    epochs: Any = option(None, METHOD, "passes over the text", "N", kind=int, least=0, most=10_000)


@dataclass(frozen=True)
class MethodOptions(EpochOptions):
    """How it is done."""

    method: str | None = option(None, METHOD, "how it is done", "NAME", common=True)


@dataclass(frozen=True)
class TextOptions(BaseOptions):
    """How much text is learned from."""

    nsamples: Any = option(
        None, CALIBRATION, "number of calibration windows or prompts; default: the method's own", "N", kind=int,
        least=1, most=1_000_000, common=True,
    )  # fmt: skip


@dataclass(frozen=True)
class CalibrationOptions(TextOptions):
    """The text that a method measures on."""

    calibration_data: Any = option(
        None, CALIBRATION, "texts to calibrate on: wikitext2, c4, alpaca, instructions, demo, self (the model writes "
        "it), mix (wikitext2, c4 and instructions), or files of text or JSON records; several are mixed, each with a "
        "share of the windows if wanted; default: the method's own", "NAME|FILE[=SHARE]", kind=tuple, common=True,
    )  # fmt: skip
    calibration_seq_len: Any = option(
        None, CALIBRATION, "tokens per calibration window, at most max_position_embeddings; default: the method's "
        "own", "N", kind=int, least=2, most=MOST_TOKENS,
    )  # fmt: skip


@dataclass(frozen=True)
class EvaluationTextOptions(BaseOptions):
    """The text that a model is scored on."""

    eval_data: Any = option(
        None, EVALUATION, "text to score on: wikitext2 (default), demo, a text file, or none", "NAME|FILE", common=True
    )
    max_seq_len: Any = option(
        4096, EVALUATION, "tokens per evaluation window, at most max_position_embeddings", "N", kind=int, least=2,
        most=MOST_TOKENS,
    )  # fmt: skip


@dataclass(frozen=True)
class EvaluationOptions(EvaluationTextOptions):
    """How a model is scored."""

    batch_size: int | None = option(
        None, EVALUATION, "windows per forward pass; default: as many as fit", "N", kind=int, least=1, most=1_000_000
    )


@dataclass(frozen=True)
class ZeroShotOptions(BaseOptions):
    """Zero-shot tasks."""

    tasks: tuple[str, ...] | None = option(
        None, ZERO_SHOT, "names of lm_eval's tasks, or YAML files of local tasks; `usual` stands for "
        + ",".join(USUAL_TASKS), "TASK,…", kind=tuple, common=True,
    )  # fmt: skip
    num_fewshot: int | None = option(
        None, ZERO_SHOT, "number of examples in the prompt; default: the task's own", "N", kind=int, least=0
    )
    apply_chat_template: bool = option(
        False, ZERO_SHOT, "put the questions into the tokenizer's chat template", kind=bool
    )
    limit: int | None = option(
        None, ZERO_SHOT, "only the first N questions of each task, for a quick look", "N", kind=int, least=1
    )


@dataclass(frozen=True)
class OverwriteOptions(BaseOptions):
    """Whether outputs may be replaced."""

    overwrite: bool = option(
        False, OUTPUT, "replace the checkpoint or report of llm_pruner at the output path", kind=bool, common=True
    )


@dataclass(frozen=True)
class SavingOptions(OverwriteOptions):
    """Where a checkpoint goes."""

    save_model: str | None = option(None, OUTPUT, "folder for the checkpoint", "DIR", common=True)
    export: tuple[str, ...] | None = option(
        None, OUTPUT, "registered exporters that write the checkpoint in other formats too", "NAME", kind=tuple
    )


@dataclass(frozen=True)
class WorkOptions(BaseOptions):
    """Where unfinished work is kept."""

    work_dir: str | None = option(
        None, OUTPUT, "folder for unfinished work, which the same command continues when it is run again", "DIR"
    )


@dataclass(frozen=True)
class ReportOptions(OverwriteOptions):
    """Where a report goes."""

    report: str | None = option(None, OUTPUT, "write the measurements to FILE as JSON", "FILE", common=True)


@dataclass(frozen=True)
class FolderOptions(BaseOptions):
    """Where several runs go."""

    folder: str | None = option(None, OUTPUT, "folder for all outputs", "DIR", common=True)


@dataclass(frozen=True)
class RunOptions(BaseOptions):
    """What every command has."""

    seed: Any = option(0, RUN, "seed of all random choices", "N", kind=int, least=0, most=MOST_SEED)
    config: str | None = option(
        None, RUN, "YAML file with any of the other options; flags win over it", "FILE", common=True
    )
    traceback: bool = option(False, RUN, "print Python's traceback of an error", kind=bool)


def check_placement(options: LoadingOptions) -> None:
    """Raise a UsageError where both `device` and `device_map` say where the model goes."""
    if options.device_map and options.device != "auto":
        raise UsageError("`device` and `device_map` both choose the device; give one of them")


def check_zero_shot(options: ZeroShotOptions) -> None:
    """Raise a UsageError for options of zero-shot tasks without tasks."""
    asked = [name for name in ("num_fewshot", "apply_chat_template", "limit") if getattr(options, name)]
    if asked and not options.tasks:
        raise UsageError(f"`{asked[0]}` is about zero-shot tasks; give `tasks`")
