"""From a model and calibration text to scores: what a criterion needs is gathered, and nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from llm_pruner import importance
from llm_pruner.config.prune import Options
from llm_pruner.errors import UsageError
from llm_pruner.importance import (
    ACTIVATIONS,
    GRADIENTS,
    MOMENTS,
    Calibration,
    Criterion,
    Evidence,
)
from llm_pruner.importance.selection import choose
from llm_pruner.model.groups import (
    HEADS,
    KV_HEADS,
    MLP,
    Group,
    reader,
    units_of,
)
from llm_pruner.shape.draft import Shape

if TYPE_CHECKING:
    import torch

    from llm_pruner.calibration.weights import Weights


@dataclass
class Found:
    """scores: by group. means: of what o_proj and down_proj read, by the name of their weight."""

    scores: "dict[str, torch.Tensor]" = field(default_factory=dict)
    means: "dict[str, torch.Tensor]" = field(default_factory=dict)


def effective(options: Options) -> Criterion:
    """The criterion that scores: what `importance` says, or random for `--criterion random`. UsageError for one that
    cannot decide the widths, where it has to."""
    if options.method:
        return importance.BEST
    own = importance.get(options.importance or "magnitude")
    if options.criterion != "random":
        if own.sequential and (options.structure or "").startswith("AL"):
            raise UsageError(
                f"importance {own.name} measures each layer behind the pruned ones, whose widths have to be known; "
                f"structure {options.structure} decides them by the scores: give another one, or another importance"
            )
        return own
    return replace(importance.get("random"), kinds=own.kinds, calibration=own.calibration)


def needs(options: Options, criterion: Criterion, scored: bool) -> frozenset[str]:
    """What has to be gathered; `scored`: there are units to rank."""
    wanted = criterion.needs if scored else frozenset()
    return wanted | {MOMENTS} if options.compensate == "bias" else wanted


def calibration_of(options: Options, criterion: Criterion, max_position_embeddings: int) -> Calibration:
    """The calibration text that `options` name, else the method's."""
    default = criterion.calibration
    data = options.calibration_data or ("demo" if options.model == "demo" else default.data)
    length = min(options.calibration_seq_len or default.seq_len, max_position_embeddings)
    return Calibration(data, options.nsamples or default.nsamples, length)


def gather(
    model, shape: Shape, to_score: list[Group], criterion: Criterion, options: Options, weights: "Weights", prompts
) -> Found:
    """Scores of `to_score`, and the means that a compensation needs. prompts: LongTensors [length], or None.

    For a sequential criterion each layer's losing units are silent while the next layers are measured.
    """
    wanted = needs(options, criterion, bool(to_score))
    evidence = Evidence(
        weights,
        seed=options.seed,
        metrics=options.metrics or Evidence.metrics,
        taylor=options.taylor or Evidence.taylor,
    )
    found = Found()
    changed = _sequential(model, shape, to_score, criterion, options, evidence, found) if criterion.sequential else None
    if wanted & set(ACTIVATIONS):
        from llm_pruner.calibration.activations import collect, with_batches

        inputs = with_batches(
            model, prompts, lambda batches: collect(model, batches, shape.groups, wanted & set(ACTIVATIONS), changed)
        )
        evidence = replace(evidence, inputs=inputs)
        if MOMENTS in wanted:
            found.means = {name: values.mean.cpu() for name, values in inputs.items()}
    if GRADIENTS in wanted:
        from llm_pruner.calibration.activations import with_batches
        from llm_pruner.calibration.gradients import weight_gradient_products

        products = with_batches(model, prompts, lambda batches: weight_gradient_products(model, batches))
        evidence = replace(evidence, products=products)
    if not (criterion.sequential and to_score):
        found.scores = importance.score(to_score, criterion, evidence)
    return found


def _sequential(
    model, shape: Shape, to_score, criterion: Criterion, options: Options, evidence: Evidence, found: Found
):
    """What is done when a layer is measured: it is scored, and the units that will go are silent for a while."""
    from llm_pruner.model.surgery import silenced

    parameters = dict(model.named_parameters())

    def changed(layer: int, inputs):
        own = [group for group in to_score if group.layer == layer]
        scores = importance.score(own, criterion, replace(evidence, inputs=inputs))
        found.scores.update(scores)
        inside = [group for group in shape.groups if group.layer == layer]
        if shape.saved:
            kept = shape.saved.kept
        else:
            kept = choose(inside, ordered(scores, options), shape.ledger.before, shape.after)
        return silenced(parameters, [group for group in inside if group.kind in (HEADS, MLP)], kept)

    return changed


def ordered(scores: "Mapping[str, torch.Tensor]", options: Options) -> "dict[str, torch.Tensor]":
    """The scores as `--criterion` wants them ranked: as they are, or the other way round."""
    return {name: -values if options.criterion == "reversed" else values for name, values in scores.items()}


def key_of(
    options: Options, criterion: Criterion, shape: Shape, calibration: Calibration | None, model: str
) -> dict[str, object]:
    """What scores are made from: two runs with the same key have the same scores. model: its fingerprint."""
    from llm_pruner.importance.score_cache import text_digest

    key: dict[str, object] = {"model": model, "dtype": options.dtype, "importance": criterion.name}
    for name in criterion.options:
        key[name] = getattr(options, name) or getattr(Evidence, name)
    if calibration:
        key |= {
            "calibration_data": text_digest(calibration.data),
            "nsamples": calibration.nsamples,
            "calibration_seq_len": calibration.seq_len,
        }
    if calibration or criterion.name == "random":
        key["seed"] = options.seed
    if criterion.sequential:  # its scores are of this shape only
        key |= {"criterion": options.criterion, "widths": [layer.asdict() for layer in shape.after]}
    return key


def sizes(shape: Shape, criterion: Criterion) -> tuple[dict[str, int], dict[str, int]]:
    """({group: how many scores it gets}, {weight of an output projection: how many inputs it has})."""
    lengths = {group.name: criterion.scores_of(group) for group in scoreable(shape, criterion)}
    readers = [reader(group) for group in shape.groups if group.kind in (HEADS, MLP)]
    return lengths, {member.parameter: shape.ledger.shapes[member.parameter][member.axis] for member in readers}


def scoreable(shape: Shape, criterion: Criterion) -> list[Group]:
    """Every group that the criterion is defined for, for scores that are kept for other shapes."""
    grouped = shape.ledger.before.grouped
    return [g for g in units_of(shape.groups) if g.kind in criterion.kinds and (grouped or g.kind != KV_HEADS)]
