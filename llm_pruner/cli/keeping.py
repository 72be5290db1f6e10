"""What a run of `prune` tells and saves of each model that it has pruned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llm_pruner.calibration.mixtures import Drawn
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.cli.deciding import Decision, Pruning
from llm_pruner.cli.vocabulary import Origin
from llm_pruner.config.prune import PROGRAM, PruneOptions
from llm_pruner.errors import redact
from llm_pruner.evaluation.scores import Measurement, Scores, compared
from llm_pruner.importance.selection import quantiles
from llm_pruner.methods import Pruned, Reconstruct, ScoreAndCut
from llm_pruner.model.size import Size, size_of
from llm_pruner.output import lineage
from llm_pruner.output.conditions import Stopwatch, conditions
from llm_pruner.output.exporters import Exporter
from llm_pruner.output.reports import Calibration as Calibrated
from llm_pruner.output.reports import CheckpointReport, Layers, PruneReport, Reconstruction, Sides, Tried
from llm_pruner.output.saving import save, warned
from llm_pruner.shape.plan import Plan


@dataclass(frozen=True)
class Keeper:
    """Scores and saves what was pruned: what a run knows when a model has been pruned.

    Attributes:
        options: As they were given.
        argv: The arguments of the command as they were typed.
        origin: The dense model.
        calibration: The calibration text, if there is one.
        tokenizer: Of the pruned model, or None.
        drawn: The calibration windows.
        made_from: The report of the checkpoint that the run started from.
        measurements: How the dense model is measured, and how a pruned one.
        before: The dense model's scores.
        finite: Where the logits have to be finite, see `checkpoint.verify`.
        exporters: {name: exporter}.
        stopwatch: Of the run.
    """

    options: PruneOptions
    argv: Sequence[str]
    origin: Origin
    calibration: Calibration | None
    tokenizer: Any
    drawn: Drawn | None
    made_from: CheckpointReport | None
    measurements: tuple[Measurement, Measurement]
    before: Scores
    finite: Any
    exporters: Mapping[str, Exporter]
    stopwatch: Stopwatch

    def kept(self, pruning: Pruning, pruned: Pruned) -> PruneReport:
        """Score a pruned model, save it where that is wanted, and return its report.

        Args:
            pruning: What was wanted.
            pruned: What came of it.

        Raises:
            RunError: Writing fails, or the place is taken.
            VerificationError: The checkpoint does not reload to the same logits.
        """
        asked, origin, stopwatch = pruning.options, self.origin, self.stopwatch
        dense, measurement = self.measurements
        after = measurement.of(pruned.model, self.tokenizer, "after", stopwatch)
        told = compared(self.before, after) | {
            "evaluation": measurement.evaluation, "vocabulary": origin.told(dense, measurement),
            **lineage.told(self.made_from, redact(asked.model), measurement.evaluation),
        }  # fmt: skip

        def report() -> PruneReport:
            made = _told(asked, pruning.decision, self.calibration, pruned, self.drawn)
            # the options of a replayed plan are those that it was made with
            own = {name: getattr(self.options, name) for name in ("prune", "target", "pruning_ratio")}
            given = replace(asked, **own)
            return PruneReport(**conditions(given, stopwatch.seconds, self.argv, PROGRAM) | made | told)

        if pruning.target is None:
            return warned(report())
        return save(
            pruned.model, self.tokenizer, pruning.target, origin.folder or origin.fetched, report, finite=self.finite,
            overwrite=asked.overwrite, stopwatch=stopwatch, export=self.exporters,
        )  # fmt: skip


def _told(
    options: PruneOptions, decision: Decision, calibration: Calibration | None, pruned: Pruned, drawn: Drawn | None
) -> dict[str, Any]:
    """The fields of a report that the pruning itself tells."""
    used, scores = None, {}
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
