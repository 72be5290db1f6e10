"""What the commands report: frozen dataclasses whose fields are those of report.json, so one description serves both.

Numbers that are not finite are NaN here and null in JSON; what was not measured is None here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from llm_pruner import serialisation
from llm_pruner.calibration.mixtures import Drawn, listed, parsed, shared_out
from llm_pruner.config.limits import MOST_LAYERS
from llm_pruner.errors import UsageError, redact, shown
from llm_pruner.files import read_json
from llm_pruner.model.axes import PRUNABLE
from llm_pruner.serialisation import optional, or_empty
from llm_pruner.validation import (
    Rule,
    check,
    each,
    either,
    fields,
    filled,
    list_of,
    mapping,
    maybe,
    number,
    one_of,
    text,
    whole,
)

SCHEMA = 2
# number in a report, so that everything computed from it stays finite
LARGEST = 1e300
T = TypeVar("T")


def _layers(value: Any) -> str | None:
    """A rule: how many layers there were and are, and which of those before are kept."""
    count = whole(1, MOST_LAYERS)
    if legal := fields({"before": count, "after": count}, ("before", "after"))(value):
        return legal
    kept = value.get("kept")
    if kept is None:
        return None
    wrong = list_of(whole(0, value["before"] - 1))(kept)
    if wrong or len(set(kept)) != len(kept) or len(kept) != value["after"]:
        return f"a mapping whose kept names {value['after']} of {value['before']} layers, not {shown(kept)}"
    return None


def _metrics(value: Any) -> str | None:
    """A rule: the metrics of a zero-shot task; lm_eval may give a standard error in words."""
    if not isinstance(value, dict):
        return "a mapping of metrics to numbers"
    return each(maybe(number()))({name: one for name, one in value.items() if "_stderr" not in name})


def _quantiles(value: Any) -> str | None:
    wrong = list_of(maybe(number()))(value)
    return wrong or (None if len(value) == 7 else "a list of 7 numbers")


def _exactly(*names: str) -> Rule:
    return fields(dict.fromkeys(names, WIDTH), names)


WIDTH, FINITE = whole(0, 2**31), number(0)
SHAPE = tuple(axis.field for axis in PRUNABLE)
Number = Annotated[float, maybe(number())]
Loss = Annotated[float, maybe(FINITE)]
Seconds = Annotated[float, FINITE]
Count = Annotated[int, whole(1, 2**62)]
Amount = Annotated[int, whole()]
Widths = dict[str, Annotated[int | list[int], either(WIDTH, filled(WIDTH))]]
Quantiles = Annotated[list[float], _quantiles]
Task = Annotated[dict[str, Any], _metrics]


@dataclass(frozen=True)
class Sides(Generic[T]):
    """A value of the model that a run started from, and of the one that it made."""

    before: T
    after: T


@dataclass(frozen=True)
class Measured(Generic[T]):
    """The same of a measurement; None where it was not made."""

    before: T | None = optional()
    after: T | None = optional()


@dataclass(frozen=True)
class Evaluation:
    """The text that perplexity was measured on. `digest` is that of a file's content."""

    data: str
    max_seq_len: Count
    windows: Count
    digest: str | None = optional()


@dataclass(frozen=True)
class CalibrationText:
    """One of several texts: its share as it was asked for, and how many windows that came to."""

    data: str
    share: Annotated[float, number(0, 1)]
    windows: Amount


@dataclass(frozen=True)
class Calibration:
    """The text that a method was calibrated on: so many samples of so many tokens; `sources` where they are several."""

    data: str
    nsamples: Amount
    seq_len: Amount
    sources: list[CalibrationText] | None = optional()

    @property
    def texts(self) -> str:
        """The text, or all of several with their windows."""
        return ", ".join(f"{own.data} ({own.windows:,})" for own in self.sources or ()) or self.data

    @classmethod
    def of(cls, data: str | Sequence[str], nsamples: int, seq_len: int, drawn: Drawn | None) -> "Calibration":
        """Return what is told of the windows that were drawn; of one text alone where nothing had to be drawn.

        Args:
            data: What was asked for, as in `mixtures.parsed`.
            nsamples: How many windows were asked for.
            seq_len: Tokens of each at most.
            drawn: The windows; a file may hold fewer records than were asked for.
        """
        sources = drawn.sources if drawn else parsed(data)
        counts = drawn.counts if drawn else shared_out(nsamples, sources)
        told = [CalibrationText(redact(own.data), own.share, count) for own, count in zip(sources, counts, strict=True)]
        names = redact(" ".join(listed(data)))
        return cls(names, sum(counts), seq_len, told if len(told) > 1 or told[0].data != names else None)


@dataclass(frozen=True)
class Vocabulary:
    """The texts whose tokens were counted, the share of those that stays, bytes of the evaluation text by token."""

    data: list[str] | None
    covered: Number | None
    bytes_per_token: Measured[Seconds] = field(default_factory=Measured)


@dataclass(frozen=True)
class Layers:
    """How many layers there were and are, and which of those before were kept; None for all."""

    before: int
    after: int
    kept: list[int] | None = None


@dataclass(frozen=True)
class Tried:
    """A shape that the search measured: its widths (of every layer, or of each), second-order cost, KL to the dense."""

    widths: Annotated[dict[str, int] | list[dict[str, int]], either(_exactly(*SHAPE), filled(_exactly(*SHAPE)))]
    expected: Number
    kl: Number
    untied: bool
    layers: Annotated[list[int] | None, maybe(list_of(whole(0, MOST_LAYERS)))]


@dataclass(frozen=True)
class Reconstruction:
    """What a reconstruction came to: KL beside a plain method's, the stream's error behind each layer, the search."""

    kl: Number = math.nan
    kl_plain: dict[str, Number] | None = None
    stream_errors: list[Loss] | None = None
    fits: list[dict[str, str]] | None = optional()
    search: list[Tried] | None = optional()
    finals: list[Tried] | None = optional()


@dataclass(frozen=True)
class Training:
    """How a recovery trained, and on what."""

    data: str
    windows: Amount
    max_seq_len: Count
    epochs: Seconds
    tokens: Amount
    tokens_per_second: Seconds
    learning_rate: Seconds
    batch_size: Amount
    gradient_accumulation_steps: Amount
    steps: Amount
    minutes: Seconds
    processes: Amount
    precision: str
    trainable_parameters: Amount
    resumed_at: list[Amount]


@dataclass(frozen=True)
class Point:
    """A moment of a recovery: the loss, or the perplexity, after so many seconds."""

    seconds: Seconds
    step: Amount | None = optional()
    loss: Number | None = optional()
    learning_rate: Number | None = optional()
    perplexity: Loss | None = optional()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What every report tells: the versions of what made it, and the command."""

    CONSTANTS: ClassVar[tuple[str, ...]] = ("step", "schema")
    step: ClassVar[str]
    schema: ClassVar[int] = SCHEMA
    versions: Annotated[dict[str, Any], fields({"llm_pruner": text}, ("llm_pruner",))]
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Return the report as `from_dict` reads it."""
        return serialisation.plain(self)


@dataclass(frozen=True, kw_only=True)
class Conditions(Report):
    """What a run was done under: seed, seconds by phase, peak memory in bytes by device, and all its options."""

    seed: Annotated[int, whole(-(2**63), 2**63)]
    seconds: dict[str, Seconds]
    peak_memory: dict[str, Seconds]
    options: Annotated[dict[str, Any], fields({"save_model": maybe(text)})]


@dataclass(frozen=True, kw_only=True)
class CheckpointReport(Conditions):
    """A run that makes a checkpoint.

    `remedy` is what helps where the checkpoint is of no use, `base_model` the first dense model, `dense_perplexity`
    what that had on the same text, `made_from` the report of the checkpoint that the run started from, and `files` the
    digests of what it wrote.
    """

    role: ClassVar[str]
    remedy: ClassVar[str]
    model: str
    base_model: str | None = None
    dense_perplexity: Seconds | None = None
    made_from: "Annotated[CheckpointReport | None, maybe(mapping)]" = None
    model_type: Sides[str]
    parameters: Sides[Count]
    bytes: Sides[Count]
    perplexity: Measured[Loss] = field(default_factory=Measured)
    bits_per_byte: Measured[Loss] = field(default_factory=Measured, metadata={"absent": True})
    evaluation: Evaluation | None = or_empty()
    zero_shot: Measured[dict[str, Task]] = field(default_factory=Measured, metadata={"absent": True})
    files: dict[str, str] = field(default_factory=dict, metadata={"absent": True})

    @property
    def how(self) -> str:
        """What the run was done by, in a word or a few."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PruneReport(CheckpointReport):
    """A pruning. `notes`: of a method of another package; `recovered`: the recovery of the same command.

    `vocabulary` is there where tokens went. Then `perplexity.before` is of the dense model's tokens, `perplexity.after`
    and `evaluation` of those that stay; `bits_per_byte` compares the two.
    """

    step: ClassVar[str] = "prune"
    role: ClassVar[str] = "pruned"
    remedy: ClassVar[str] = "remove less, calibrate on more text, or train the checkpoint with `llm-pruner recover`"
    decoder_parameters: Sides[Amount]
    widths: Sides[Widths]
    layers: Annotated[Layers, _layers]
    removed: dict[str, Number]
    importance: str
    order: str = "standard"
    compensate: str
    masked: bool
    calibration: Calibration | None = or_empty()
    scores: Annotated[dict[str, list[Quantiles]], each(filled(_quantiles))] = field(
        default_factory=dict, metadata={"absent": True}
    )
    reconstruction: Reconstruction | None = optional()
    vocabulary: Vocabulary | None = optional()
    notes: dict[str, Any] = field(default_factory=dict, metadata={"absent": True})
    recovered: "RecoverReport | None" = optional()

    @property
    def how(self) -> str:
        """The importance criterion, or `reconstruct`."""
        return self.importance


@dataclass(frozen=True, kw_only=True)
class RecoverReport(CheckpointReport):
    """A recovery by training."""

    step: ClassVar[str] = "recover"
    role: ClassVar[str] = "recovered"
    remedy: ClassVar[str] = "train longer or on more text, or remove less"
    method: Annotated[str, one_of(("distil", "lora"))]
    train_weights: Annotated[str | None, maybe(one_of(("full", "lora")))]
    teacher: str | None
    recovered_share: Annotated[float, number()] | None
    training: Training
    history: list[Point]

    @property
    def how(self) -> str:
        """The method of training."""
        return self.method


@dataclass(frozen=True, kw_only=True)
class SparsifyReport(CheckpointReport):
    """A run that made activations or weights sparse. `key`: of all that the result follows from, in a sweep."""

    step: ClassVar[str] = "sparsify"
    role: ClassVar[str] = "sparse"
    remedy: ClassVar[str] = "keep a larger share, or use another criterion or transform"
    label: str
    sparsity: Annotated[dict[str, Any], fields({"sparse": one_of(("activations", "weights"))}, ("sparse",))]
    kept: Annotated[float, number(0, 1)] | None
    calibration: Calibration | None = or_empty()
    learned: dict[str, Any]
    zero_shot: Measured[dict[str, Task]] = field(default_factory=Measured)
    key: str | None = optional()

    @property
    def how(self) -> str:
        """The recipe, in a few words."""
        return self.label

    @property
    def sparse(self) -> str:
        """What is sparse: activations or weights."""
        return self.sparsity["sparse"]


@dataclass(frozen=True)
class SweepRun:
    """A row of a sweep's table; `report` is the file of the run's own report."""

    model: str
    pattern: str
    report: str
    label: str
    kept: float | None
    perplexity: Measured[Loss]
    zero_shot: Measured[dict[str, Task]]
    seconds: Seconds


@dataclass(frozen=True, kw_only=True)
class SweepReport(Report):
    """Patterns by models: a row for each run, and what went wrong."""

    step: ClassVar[str] = "sweep"
    runs: list[SweepRun]
    failures: list[str]


@dataclass(frozen=True)
class TextScore:
    """Perplexity on a text of so many windows of so many tokens, and bits per byte, which no tokenizer changes."""

    value: Loss
    windows: Count
    max_seq_len: Count
    bits_per_byte: Loss | None = optional()


@dataclass(frozen=True)
class Mode:
    """One way of running a model, in every round; or the reason why it was not measured."""

    prefill_tokens_per_second: list[Seconds] | None = optional()
    decode_tokens_per_second: list[Seconds] | None = optional()
    time_to_first_token_seconds: list[Seconds] | None = optional()
    reason: str | None = optional()


@dataclass(frozen=True)
class Speed:
    """Speed by mode, and peak memory in bytes where it could be known."""

    modes: dict[str, Mode]
    peak_memory: Amount | None


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the dense model, over the rounds."""

    median: Seconds
    low: Seconds
    high: Seconds


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of an evaluation; perplexity by text, zero-shot metrics by task."""

    name: str
    path: str | None = None
    model_type: str | None = None
    dtype: str | None = None
    parameters: Count | None = None
    bytes: Count | None = None
    layers: Count | None = None
    widths: Widths = field(default_factory=dict)
    perplexity: dict[str, TextScore] = field(default_factory=dict)
    zero_shot: dict[str, Task] = field(default_factory=dict)
    speed: Speed | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluateReport(Conditions):
    """An evaluation of several models. `dense` names the one that `ratios` (by model, mode, phase) compare with."""

    step: ClassVar[str] = "evaluate"
    models: list[EvaluatedModel]
    dense: str
    ratios: dict[str, dict[str, dict[str, Ratio]]]
    conditions: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A stage of a pipeline."""

    stage: str
    skipped: bool
    seconds: Seconds


@dataclass(frozen=True, kw_only=True)
class PipelineReport(Report):
    """The summary of a pipeline, by stage and, of the evaluation, by model."""

    step: ClassVar[str] = "pipeline"
    model: str
    stages: list[Stage]
    parameters: dict[str, Count]
    perplexity: dict[str, Measured[Loss]]
    recovered_share: float | None
    zero_shot: dict[str, dict[str, Task]]
    speed: dict[str, dict[str, dict[str, Ratio]]]


REPORTS: dict[str, type[Report]] = {
    kind.step: kind
    for kind in (PruneReport, RecoverReport, SparsifyReport, SweepReport, EvaluateReport, PipelineReport)
}


def read(path: Path, what: str = "report") -> Report:
    """Read a report's JSON file.

    Raises:
        UsageError: It is no JSON, of another schema version, or a field of it, or of a report in it, is illegal.
    """
    return from_dict(read_json(path, what), str(path))


def from_dict(values: Any, where: str) -> Report:
    """Build the report that `to_dict` gave.

    Args:
        values: The report, with those that it is `made_from` inside.
        where: The file, for messages.

    Raises:
        UsageError: It is of another schema version, or a field of it is missing or illegal.
    """
    _check_numbers(values, where)
    return _built(values, where)


def _built(values: Any, where: str) -> Report:
    check(values, {}, where)
    if "schema" not in values:
        raise UsageError(f"{where} was written by an older llm_pruner (no schema version); create it again")
    if values["schema"] != SCHEMA:
        raise UsageError(
            f"{where} has schema version {shown(values['schema'])}, and this llm_pruner reads {SCHEMA}; create it again"
        )
    check(values, {"step": one_of(tuple(REPORTS))}, where, required=("step",))
    report = serialisation.read(REPORTS[values["step"]], {**values, "made_from": None, "recovered": None}, where)
    if not isinstance(report, CheckpointReport) or values.get("made_from") is None:
        return report
    check(values, {"made_from": maybe(mapping)}, where)
    earlier = _built(values["made_from"], f"{where}: made_from")
    if not isinstance(earlier, CheckpointReport):
        raise UsageError(f"{where}: made_from: step: {shown(earlier.step)} makes no checkpoint")
    return replace(report, made_from=earlier)


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
    """UsageError for a number that is not finite, wherever it is."""
    level: list[tuple[str, Any]] = [("", values)]
    while level:
        inner: list[tuple[str, Any]] = []
        for name, value in level:
            if isinstance(value, int | float) and not abs(value) <= LARGEST:
                raise UsageError(f"{where}: {name[2:]}: {shown(value)} must be a finite number")
            if isinstance(value, dict):
                inner += [(f"{name}: {key}", own) for key, own in value.items()]
            elif isinstance(value, list):
                inner += [(name, own) for own in value]
        level = inner
