"""Our own method: a shape is searched, the model reconstructed in it, and the result compared with the baseline."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llm_pruner.calibration.activations import Inputs
from llm_pruner.calibration.layerwise import not_finite
from llm_pruner.calibration.statistics import Calibration, Statistics
from llm_pruner.calibration.weights import Weights
from llm_pruner.config.limits import MOST_SEED
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.importance import criterion_of, score
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.methods.score_and_cut import Measured, ScoreAndCut
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS, MLP, PRUNABLE, Axis, Layers, Widths, is_grouped
from llm_pruner.model.depth import at_full_depth, make_shallow, shallow_config
from llm_pruner.model.families import Family, family_of
from llm_pruner.model.layers import layer_number
from llm_pruner.model.surgery import empty
from llm_pruner.model.untie import is_tied, untied
from llm_pruner.reconstruction.allocation import changed, improved, in_nats, layers_by_costs
from llm_pruner.reconstruction.baseline import Baseline, baseline
from llm_pruner.reconstruction.costs import Costs, measure_layers
from llm_pruner.reconstruction.end_to_end import LARGEST, Teacher, optimise_together
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.reconstruction.probe import Probe
from llm_pruner.reconstruction.reconstruct import reconstruct
from llm_pruner.reconstruction.search import (
    Candidate,
    Space,
    candidates,
    cheapest_layers,
    depths_of,
    search,
)
from llm_pruner.reconstruction.survey import Survey, survey
from llm_pruner.reconstruction.tokens import Tokens, split
from llm_pruner.shape.allocate import adaptive_groups, allocate
from llm_pruner.shape.budget import TOLERANCE, Goal, filled_with_neurons
from llm_pruner.shape.draft import Draft, Searched, Traced
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Budget, Request
from llm_pruner.validation import check, maybe, number, path, truth, whole

if TYPE_CHECKING:
    import torch

# the search's: layers are not optimised
QUICK = Settings(epochs=0)
# and it fits on one of so many prompts
PART = 4
# so many shapes, whose KL is at most so many times the best one's, then fit on all prompts
FINALISTS, CLOSE = 3, 1.1
# tokens that the optimisation of a layer sees, in 2 to 8 passes, where nothing else is asked for
TRAINED_ON = 131_072
LEGAL = {
    "search_minutes": number(0), "per_layer": truth, "epochs": maybe(whole()),
    "global_epochs": maybe(whole()), "work_dir": maybe(path),
    "seed": whole(0, MOST_SEED),
}  # fmt: skip


@dataclass(frozen=True)
class Reconstruct:
    """The shape is searched, and what is left reconstructed so that it does what the dense model did.

    Attributes:
        search_minutes: How long shapes may be compared for a budget of parameters; 0 takes the proportional one.
        per_layer: Whether every layer gets widths of its own, by what its units cost.
        epochs: Passes over the text in which each layer is optimised as a whole; None for 2 to 8, fewer of more text.
        global_epochs: Passes over the text in which all layers are optimised together, towards the dense model's
            logits; None for 1, or for 0 where the layers have more than a billion parameters.
        work_dir: A folder in which finished work is kept, so that an interrupted run goes on there.
        seed: Of everything random.

    Raises:
        UsageError: A value is out of range, or of another type.
    """

    search_minutes: float = 1.0
    per_layer: bool = False
    epochs: int | None = None
    global_epochs: int | None = None
    work_dir: str | Path | None = None
    seed: int = 0

    name: ClassVar[str] = "reconstruct"
    axes: ClassVar[tuple[Axis, ...]] = PRUNABLE
    searches: ClassVar[bool] = True
    removes_layers: ClassVar[bool] = True
    calibration: ClassVar[Calibration] = Calibration("mix", nsamples=128, seq_len=2048)

    def __post_init__(self) -> None:
        check(vars(self), LEGAL, f"method {self.name}")

    def usual_axes(self, request: Request, before: Widths, family: Family) -> tuple[Axis, ...]:
        """Return heads, neurons and kv groups, and hidden channels for a ratio or a size of the whole model."""
        if not isinstance(request, Budget):
            return (HIDDEN, HEADS, MLP)
        axes = (HEADS, MLP)
        if family.derived_head_dim:
            return axes
        of_whole = request.params is not None or request.memory is not None
        hidden = of_whole and not self.per_layer and not family.post_norms
        return (*((HIDDEN,) if hidden else ()), *((KV_HEADS,) if is_grouped(before) else ()), *axes)

    def check(self, draft: Draft) -> None:
        """Raise a PlanError where hidden channels would go and no rotation goes through the model's norms."""
        model_type = draft.traced.config.model_type
        if draft.is_narrower and family_of(model_type).post_norms:
            raise PlanError(
                f"{model_type} normalises what goes into its residual stream, and no rotation goes through that; "
                "leave hidden out of `prune`, or use `importance=magnitude`"
            )

    def needs_text(self, draft: Draft) -> bool:
        """Return True: a reconstruction always fits on calibration prompts."""
        return True

    def outline(self, draft: Draft) -> tuple[Plan, Any]:
        """Return the plan that a search would start from; see `Method.outline`."""
        layers = tuple(range(len(draft.widths))) if draft.removes_layers else None
        planned = Planned.of(draft.traced, Form(draft.widths, layers))
        return replace(planned.plan, importance=self.name, seed=self.seed), planned.config

    def prune(
        self, model, draft: Draft, prompts: "Sequence[torch.Tensor] | None" = None, journal: Journal | None = None
    ) -> Pruned:
        """Search, reconstruct and compare; see `Method.prune`. Every eighth prompt is held out."""
        if not prompts:
            raise UsageError(f"method {self.name} needs calibration prompts")
        journal = journal or Journal()
        Weights(dict(model.named_parameters())).check_all_finite()
        tokens = split(prompts)
        folder = Path(self.work_dir).expanduser() if self.work_dir else None
        identity = ""
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            identity = _identity(model, tokens)
        with journal.timed("search"):
            found = _Search(self, model, draft, tokens, folder, identity, journal).form()
        form = found.form
        planned = Planned.of(draft.traced, form)
        plan = replace(planned.plan, importance=self.name, seed=self.seed)
        planned = replace(planned, plan=plan)
        groups, wide, layers = planned.dense.groups, planned.wide, form.layers
        dense: Any = untied(model) if form.untied else model
        settings = Settings(epochs=passes(tokens) if self.epochs is None else self.epochs, seed=self.seed)
        with journal.timed("reconstruct"):
            key = hashlib.sha256(repr((identity, form, asdict(settings))).encode()).hexdigest()
            own = folder and folder / key[:16]
            done = reconstruct(dense, groups, wide, planned.config, tokens, settings, own, layers)
        with journal.timed("baseline"):
            plain = baseline(dense, groups, wide, tokens, done.dense_stream, layers, found.inputs)
        if not (math.isfinite(done.kl) or math.isfinite(plain.kl)):
            raise not_finite("the pruned model's logits are NaN or Inf on the calibration data", dense.dtype)
        notes = {
            **found.tried, "kl": done.kl, "kl_plain": {plain.criterion: plain.kl}, "stream_errors": done.errors,
            "fits": done.fits,
        }  # fmt: skip
        if dense is not model:
            # what the two share goes with the other's
            empty(model)
        journal.log(
            f"KL(dense ‖ pruned) on held-out calibration text: {done.kl:.4f}; "
            f"plain {plain.criterion} at this shape: {plain.kl:.4f}"
        )
        # NaN is no better than anything
        if math.isfinite(done.kl) and not plain.kl < done.kl:
            plan = replace(plan, kept=planned.named(done.kept))
            epochs = together(done.model) if self.global_epochs is None else self.global_epochs
            teacher = Teacher.of(dense, done.dense_stream) if epochs else None
            result = done.settle(dense)
            if teacher:
                with journal.timed("optimise"):
                    _, notes["kl"] = optimise_together(result, teacher, tokens, epochs, self.seed)
                journal.log(f"all layers optimised towards the dense model's logits: KL {notes['kl']:.4f}")
            return Pruned(result, plan, planned.config, notes)
        journal.log(f"note: plain {plain.criterion} is better here and is kept")
        return self._plain(dense, draft, form, plain, notes)

    def _plain(self, dense, draft: Draft, form: Form, plain: Baseline, notes: dict[str, Any]) -> Pruned:
        """The model cut as the baseline says."""
        method = ScoreAndCut(plain.criterion, compensate="bias" if plain.means else "none", seed=self.seed)
        planned = Planned.of(draft.traced, form, biases=bool(plain.means))
        if form.layers:
            make_shallow(dense, form.layers)
        plan = replace(
            planned.plan, importance=plain.criterion, seed=self.seed, compensate=method.compensate,
            kept=planned.named(plain.kept),
        )  # fmt: skip
        own = replace(draft, traced=planned.stays)
        measured = Measured(means=planned.named(plain.means))
        pruned = method.apply(dense, own, plan, planned.config, measured)
        return replace(pruned, notes=notes)


@dataclass(frozen=True)
class _Search:
    """The search for the form of a model."""

    method: Reconstruct
    model: Any
    draft: Draft
    tokens: Tokens
    folder: Path | None
    identity: str
    journal: Journal

    @property
    def goal(self) -> Goal:
        """What has to be met."""
        assert isinstance(self.draft.shape, Searched), "other drafts say what the widths are"
        return self.draft.shape.goal

    def form(self) -> "_Found":
        """Return the form to reconstruct the model in, and what was measured on the way."""
        method, draft = self.method, self.draft
        if draft.removes_layers:
            costs = measure_layers(self.model, part_of(self.tokens).fitted)
            return _Found(Form(draft.widths, cheapest_layers(costs, len(draft.widths))))
        if not isinstance(draft.shape, Searched) or not (method.search_minutes or method.per_layer):
            return _Found(Form(draft.widths))
        before = draft.traced.counter.before
        found = survey(self.model, draft.traced.groups, self.tokens.fitted, before)
        probe = Probe(self.model, found, self.tokens.held_out, before) if found.regressions else None
        own, tried = self._per_layer(found, probe) if method.per_layer else (None, {})
        if own and (probe or not method.search_minutes):
            return _Found(Form(own), tried, found.inputs)
        free = untied(self.model) if is_tied(self.model) and self.goal.whole else None
        try:
            listed = candidates(self._space(draft.shape, found.costs, free), found.costs)
        except PlanError:
            # heads alone, for one, are too few to meet a budget as closely as a search has to
            return _Found(Form(own or draft.widths), tried, found.inputs)
        return _Found(*self._best(listed, found.costs, probe, own, free), found.inputs)

    def _per_layer(self, found: Survey, probe: Probe | None) -> tuple[Layers, dict[str, Any]]:
        """(widths of its own for every layer, what was tried)."""
        counter, axes, minutes = self.draft.traced.counter, self.draft.axes, self.method.search_minutes
        if not probe:
            return layers_by_costs(counter, axes, self.goal, found.costs), {}
        before = counter.before
        share = (self.goal.count(counter, counter.full) - self.goal.parameters) / counter.decoder(counter.full)
        prices = in_nats(found.costs, before, share, probe.kl)
        starts: dict[str, Callable[[], Layers]] = {
            "costs": partial(layers_by_costs, counter, axes, self.goal, found.costs)
        }
        starts["prices"] = partial(layers_by_costs, counter, axes, self.goal, prices)
        starts["flap"] = partial(self._as_flap, found, share)
        starts["uniform"] = self._uniform
        shapes = {}
        for name, start in starts.items():
            with contextlib.suppress(PlanError):
                shapes[name] = start()
        if not shapes:
            starts["costs"]()
        measured = {name: self._candidate(shape, prices, probe) for name, shape in shapes.items()}
        told = ", ".join(f"{candidate.measured:.4f} ({name})" for name, candidate in measured.items())
        best = min(measured, key=lambda name: measured[name].measured)
        own, kl, moves = improved(shapes[best], before, axes, probe.kl, minutes, self.method.seed)
        self.journal.log(f"search: KL {told}; {kl:.4f} after {moves} moves between layers")
        listed = [*measured.values(), *([self._candidate(own, prices, probe)] if moves else [])]
        listed.sort(key=lambda candidate: candidate.measured)
        return own, {"search": [candidate.told() for candidate in listed]}

    def _candidate(self, layers: Layers, costs: Costs, probe: Probe) -> Candidate:
        """Widths of its own for every layer, measured."""
        kl = probe.kl(changed(layers, self.draft.traced.counter.before))
        return Candidate(layers, sum(costs.of(*each) for each in enumerate(layers)), kl=kl)

    def _as_flap(self, found: Survey, share: float) -> Layers:
        """FLAP's allocation, AL-AM."""
        counter, weights = self.draft.traced.counter, Weights(dict(self.model.named_parameters()))
        groups = adaptive_groups(self.draft.traced.groups, counter.before, self.draft.axes)
        scores = score(groups, criterion_of("flap"), Statistics(weights, inputs=found.inputs))
        return allocate(counter, groups, scores, share, "AL-AM", exact=True)

    def _uniform(self) -> Layers:
        """One width for all, as many heads as there are where neurons can meet the goal alone."""
        counter = self.draft.traced.counter
        if MLP in self.draft.axes:
            widths = filled_with_neurons(counter, counter.before, self.goal)
            if self.goal.missed(counter, counter.everywhere(widths)) < TOLERANCE:
                return counter.everywhere(widths)
        return self.draft.widths

    def _space(self, shape: Searched, costs: Costs, free) -> Space:
        traced = self.draft.traced
        counter, config = traced.counter, traced.config
        depths = [cheapest_layers(costs, number) for number in depths_of(counter.num_layers) if shape.depths]
        return Space(
            counter, config, self.draft.axes, shape.goal,
            {layers: Traced.of(shallow_config(config, layers), counter.before).counter for layers in depths},
            Traced.of(free.config, counter.before).counter if free else None,
        )  # fmt: skip

    def _best(
        self, listed: list[Candidate], costs: Costs, probe: Probe | None, own: Layers | None, free
    ) -> tuple[Form, dict[str, Any]]:
        """The best of the candidates; those that are rebuilt are measured on some of the text, the closest on all."""
        number, before, some = len(costs.neurons), self.draft.traced.counter.before, part_of(self.tokens)

        def form_of(candidate: Candidate) -> Form:
            if candidate.widths == own:
                return Form(own)
            assert isinstance(candidate.widths, Widths), "only `own` has widths of its own for every layer"
            depth = len(candidate.layers or range(number))
            return Form((candidate.widths,) * depth, candidate.layers, candidate.untied)

        def rebuilt(text: Tokens, candidate: Candidate) -> float:
            planned = Planned.of(self.draft.traced, form_of(candidate))
            dense, layers = free if candidate.untied else self.model, candidate.layers
            groups = planned.dense.groups
            return reconstruct(dense, groups, planned.wide, planned.config, text, QUICK, layers=layers).kl

        def probed(candidate: Candidate) -> float:
            assert probe and isinstance(candidate.widths, Widths)
            stay = range(number) if candidate.layers is None else candidate.layers
            return probe.kl(changed(at_full_depth((candidate.widths,) * len(stay), stay, before, number), before), stay)

        # the survey knows no other stream
        quick = probe is not None and HIDDEN not in self.draft.axes
        key = f"{self.identity} {self.goal} {self.draft.axes} {self.method.per_layer}"
        name, folder, log = hashlib.sha256(key.encode()).hexdigest()[:16], self.folder, self.journal.log
        cache = folder and folder / f"search-{name}.json"
        measure = probed if quick else partial(rebuilt, some)
        found = search(listed, measure, self.method.search_minutes, cache, key)
        tried = {"search": [candidate.told() for candidate in found]}
        log(f"search: {len(found)} of {len(listed)} shapes measured; KL {found[0].kl:.4f} to {found[-1].kl:.4f}")
        close = [candidate for candidate in found[:FINALISTS] if candidate.measured <= CLOSE * found[0].measured]
        close += [Candidate(own, sum(costs.of(*each) for each in enumerate(own)))] if own else []
        if len(close) > 1 and not quick:
            cache = folder and folder / f"finals-{name}.json"
            found = search(close, partial(rebuilt, self.tokens), math.inf, cache, key)
            tried["finals"] = [candidate.told() for candidate in found]
            log(f"search: the best {len(found)} on all of the text; KL {found[0].kl:.4f} to {found[-1].kl:.4f}")
        return form_of(found[0]), tried


@dataclass(frozen=True)
class _Found:
    """What a search found.

    Attributes:
        form: The form to reconstruct the model in.
        tried: What was measured on the way, for the report.
        inputs: {weight of an output projection: statistics of its input in the dense model}, as far as they are known.
    """

    form: Form
    tried: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Inputs] | None = None


def part_of(tokens: Tokens) -> Tokens:
    """Return one of PART batches to fit on, and all that are held out: comparing wants as much text as there is."""
    places = [place for place, held in enumerate(tokens.held) if held or place % PART == 0]
    return Tokens([tokens.batches[place] for place in places], [tokens.held[place] for place in places])


def together(model) -> int:
    """Return how many passes all layers of a pruned model are optimised in together, where nothing is asked for."""
    sizes = (parameter.numel() for name, parameter in model.named_parameters() if layer_number(name) is not None)
    return int(sum(sizes) <= LARGEST)


def passes(tokens: Tokens) -> int:
    """Return how often the optimisation goes over the text."""
    return max(2, min(8, round(TRAINED_ON / sum(batch.numel() for batch in tokens.fitted))))


def _identity(model, tokens: Tokens) -> str:
    """A digest of the weights and the text, by which an interrupted run is recognised."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        digest.update(f"{name} {tuple(parameter.shape)} {values.sum().item()} {values.abs().sum().item()}".encode())
    for batch, held in zip(tokens.batches, tokens.held, strict=True):
        digest.update(repr((batch.tolist(), held)).encode())
    return digest.hexdigest()
