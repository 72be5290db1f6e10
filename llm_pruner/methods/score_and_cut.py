"""The field's classic method: score every unit, keep the highest, cut the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from llm_pruner.calibration.activations import collect, with_batches
from llm_pruner.calibration.gradients import weight_gradient_products
from llm_pruner.calibration.needs import ACTIVATIONS, GRADIENTS, MOMENTS, WEIGHTS
from llm_pruner.calibration.statistics import Calibration, Statistics
from llm_pruner.calibration.weights import Weights
from llm_pruner.config.limits import COMPENSATE, MOST_SEED, ORDERS
from llm_pruner.errors import UsageError
from llm_pruner.importance import Criterion, criterion_of, score
from llm_pruner.importance.criteria.random import Random
from llm_pruner.importance.selection import choose
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS, MLP, Axis, Widths, is_grouped
from llm_pruner.model.families import Family
from llm_pruner.model.groups import Group, output_projection, units_of
from llm_pruner.model.surgery import cut, mask, silenced
from llm_pruner.reconstruction.bias import output_biases
from llm_pruner.shape.draft import Adaptive, Draft, Replayed, decided, groups_to_score
from llm_pruner.shape.plan import Plan, make_plan
from llm_pruner.shape.request import Ratio, Request
from llm_pruner.validation import check, one_of, truth, whole

if TYPE_CHECKING:
    import torch
LEGAL = {
    "order": one_of(ORDERS), "compensate": one_of(COMPENSATE), "mask_only": truth, "seed": whole(0, MOST_SEED),
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What was measured on a model.

    Attributes:
        scores: {group name: scores of its units}.
        means: {weight of an output projection: mean of its input}, where a compensation needs them.
    """

    scores: "dict[str, torch.Tensor]" = field(default_factory=dict)
    means: "dict[str, torch.Tensor]" = field(default_factory=dict)


@dataclass(frozen=True)
class ScoreAndCut:
    """Units with the highest scores stay; the others are cut, or set to zero.

    Attributes:
        criterion: What scores: a criterion, or its name, perhaps with options (`flap:metrics=IFV`).
        order: Whether the lowest scores go (standard), the highest (reversed) or any (random).
        compensate: `bias`: o_proj and down_proj get the mean output of the removed units as a bias; or `none`.
        mask_only: Whether units are set to zero instead of cut.
        seed: Of everything random.

    Raises:
        UsageError: The criterion, the order or the compensation is unknown, or a value of another type.
    """

    criterion: Criterion | str = "magnitude"
    order: str = "standard"
    compensate: str = "none"
    mask_only: bool = False
    seed: int = 0

    searches: ClassVar[bool] = False
    removes_layers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "criterion", criterion_of(self.criterion, usual={"seed": self.seed}))
        check(vars(self), LEGAL, "method score_and_cut")

    @property
    def _scores_by(self) -> Criterion:
        assert not isinstance(self.criterion, str), "a name has become a criterion as soon as the method was made"
        return self.criterion

    @property
    def name(self) -> str:
        """The criterion's name."""
        return self._scores_by.name

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes that the criterion scores."""
        return self._scores_by.axes

    @property
    def calibration(self) -> Calibration:
        """The text that the criterion was published with."""
        return self._scores_by.calibration

    @property
    def scorer(self) -> Criterion:
        """What scores: the criterion, or random numbers where the order is random."""
        return Random(self.seed) if self.order == "random" else self._scores_by

    def without_compensation(self) -> "ScoreAndCut":
        """Return the method for a model that stays as it is."""
        return replace(self, compensate="none")

    def usual_axes(self, request: Request, before: Widths, family: Family) -> tuple[Axis, ...]:
        """Return heads and neurons, and hidden channels for a ratio where the criterion scores them."""
        hidden = (HIDDEN,) if isinstance(request, Ratio) and HIDDEN in self.axes else ()
        return (*hidden, HEADS, MLP)

    def check(self, draft: Draft) -> None:
        """Raise a UsageError where a sequential criterion would have to decide the widths."""
        if self.scorer.sequential and isinstance(draft.shape, Adaptive):
            raise UsageError(
                f"importance {self.name} measures each layer behind the pruned ones, whose widths have to be known; "
                f"structure {draft.shape.structure} decides them by the scores: give another one, or another importance"
            )

    def needs(self, scored: bool) -> frozenset[str]:
        """Return which statistics are needed. scored: whether there are units to rank."""
        wanted = self.scorer.needs if scored else frozenset()
        return wanted | {MOMENTS} if self.compensate == "bias" else wanted

    def needs_text(self, draft: Draft) -> bool:
        """Return whether calibration prompts are needed."""
        return bool(self.needs(bool(groups_to_score(draft))) - {WEIGHTS})

    def outline(self, draft: Draft) -> tuple[Plan, Any]:
        """Return the plan without its kept units, where no scores are needed for that; see `Method.outline`."""
        return self.plan(draft, Measured())

    def prune(
        self, model, draft: Draft, prompts: "Sequence[torch.Tensor] | None" = None, journal: Journal | None = None
    ) -> Pruned:
        """Measure, plan and cut; see `Method.prune`."""
        journal = journal or Journal()
        with journal.timed("score"):
            measured = self.measure(model, draft, groups_to_score(draft), prompts)
        plan, config = self.plan(draft, measured, model)
        return self.apply(model, draft, self.with_units(plan, draft, measured), config, measured, journal)

    def measure(
        self, model, draft: Draft, groups: Sequence[Group], prompts: "Sequence[torch.Tensor] | None" = None
    ) -> Measured:
        """Return the scores of `groups`, and the means that a compensation needs.

        Args:
            model: The model; None where the scorer needs nothing of it.
            draft: What was asked for.
            groups: In the units that are ranked.
            prompts: LongTensors [length].

        Raises:
            RunError: Naming the tensor, when weights or statistics are not all finite.
            UsageError: Prompts are needed and missing.
        """
        weights = Weights(dict(model.named_parameters()) if model is not None else {})
        calibrated = self.needs(bool(groups)) - {WEIGHTS}
        if calibrated:
            if not prompts or max(map(len, prompts)) < 2:
                raise UsageError("calibration needs prompts of at least two tokens")
            # before the text runs through, or a layer is named for what a weight did
            weights.check_all_finite()
        measured = self._measured(model, draft, groups, prompts, weights)
        if not calibrated:
            weights.check_all_finite()
        return measured

    def _measured(self, model, draft: Draft, groups: Sequence[Group], prompts, weights: Weights) -> Measured:
        wanted, scorer = self.needs(bool(groups)), self.scorer
        statistics, means = Statistics(weights), {}
        silence = _Silence(self, model, draft, groups, statistics) if scorer.sequential else None
        if wanted & set(ACTIVATIONS):
            traced, needs = draft.traced.groups, wanted & set(ACTIVATIONS)
            inputs = with_batches(model, prompts, lambda batches: collect(model, batches, traced, needs, silence))
            statistics = replace(statistics, inputs=inputs)
            if MOMENTS in wanted:
                means = {name: values.mean.cpu() for name, values in inputs.items()}
        if GRADIENTS in wanted:
            products = with_batches(model, prompts, lambda batches: weight_gradient_products(model, batches))
            statistics = replace(statistics, products=products)
        return Measured(silence.scores if silence and groups else score(groups, scorer, statistics), means)

    def ranked(self, scores: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Return the scores as the order wants them ranked: as they are, or the other way round."""
        return {name: -values if self.order == "reversed" else values for name, values in scores.items()}

    def plan(self, draft: Draft, measured: Measured, model=None) -> tuple[Plan, Any]:
        """Return the plan, without its kept units unless it is a replay, and the new configuration.

        Args:
            draft: What was asked for.
            measured: The scores, where they decide the widths.
            model: The model whose parameters are counted; by default the draft's, on the meta device.

        Raises:
            PlanError: The scores cannot decide widths that meet the request, or no class holds them.
        """
        biases = self.compensate == "bias"
        after = decided(draft, self.ranked(measured.scores), biases)
        plan, config = make_plan(model or draft.traced.model, draft.traced.groups, after, biases)
        if isinstance(draft.shape, Replayed):
            saved = draft.shape.plan
            plan = replace(
                plan, importance=saved.importance, order=saved.order, seed=saved.seed, kept=saved.kept,
                calibration=saved.calibration, compensate=self.compensate,
            )  # fmt: skip
            return plan, config
        return replace(plan, importance=self.name, order=self.order, seed=self.seed, compensate=self.compensate), config

    def with_units(self, plan: Plan, draft: Draft, measured: Measured) -> Plan:
        """Return the plan with the units that stay.

        Args:
            plan: The plan, which a replay has the units of already.
            draft: What was asked for.
            measured: The scores.
        """
        if plan.kept is not None:
            return plan
        kept = choose(draft.traced.groups, self.ranked(measured.scores), plan.before, plan.after)
        return replace(plan, kept=kept)

    def apply(
        self, model, draft: Draft, plan: Plan, config, measured: Measured, journal: Journal | None = None
    ) -> Pruned:
        """Cut or mask the model as the plan says.

        Args:
            model: The model, which gives up its tensors.
            draft: What was asked for.
            plan: With its kept units.
            config: The configuration of the cut model.
            measured: The means, where a compensation needs them.
            journal: Takes the phase.
        """
        groups, biases = draft.traced.groups, None
        with (journal or Journal()).timed("cut"):
            if self.compensate == "bias":
                biases = output_biases(groups, plan.units, dict(model.named_parameters()), measured.means)
            if not self.mask_only:
                return Pruned(cut(model, groups, plan.units, config, biases), plan, config)
            _, same_shape = make_plan(model, groups, draft.traced.counter.full, biases=bool(biases))
            return Pruned(mask(model, groups, plan.units, same_shape, biases), plan, same_shape)

    def sizes(self, draft: Draft) -> tuple[dict[str, int], dict[str, int]]:
        """Return ({group: number of its scores}, {weight of an output projection: number of its inputs})."""
        lengths = {group.name: self.scorer.scores_of(group) for group in self.scoreable(draft)}
        shapes = draft.traced.counter.shapes
        members = [output_projection(group) for group in draft.traced.groups if group.axis in (HEADS, MLP)]
        return lengths, {member.parameter: shapes[member.parameter][member.dim] for member in members}

    def scoreable(self, draft: Draft) -> list[Group]:
        """Return every group that the criterion is defined for, for scores that are kept for other shapes."""
        grouped = is_grouped(draft.traced.counter.before)
        return [g for g in units_of(draft.traced.groups) if g.axis in self.axes and (grouped or g.axis != KV_HEADS)]


@dataclass(frozen=True)
class _Silence:
    """What is done when a layer is measured: it is scored, and the units that will go are silent for a while.

    Attributes:
        scores: {group name: scores of its units}, of the layers that were measured.
    """

    method: ScoreAndCut
    model: Any
    draft: Draft
    groups: Sequence[Group]
    statistics: Statistics
    scores: "dict[str, torch.Tensor]" = field(default_factory=dict)

    def __call__(self, layer: int, inputs):
        """Score the layer by its inputs, and return the context in which its units are silent."""
        method, draft = self.method, self.draft
        own = [group for group in self.groups if group.layer == layer]
        scores = score(own, method.scorer, replace(self.statistics, inputs=inputs))
        self.scores.update(scores)
        inside = [group for group in draft.traced.groups if group.layer == layer]
        if isinstance(draft.shape, Replayed):
            kept = draft.shape.plan.units
        else:
            kept = choose(inside, method.ranked(scores), draft.traced.counter.before, draft.widths)
        parameters = dict(self.model.named_parameters())
        return silenced(parameters, [group for group in inside if group.axis in (HEADS, MLP)], kept)
