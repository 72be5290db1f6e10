"""From a budget to the form of a model: its widths, the layers that stay, and whether lm_head gets its own weight.

one pass through the dense model ──► costs, normal equations
│
one width for all: candidates in the order of their costs, measured
widths per layer: costs · measured price of each layer, FLAP's, one width ──► the best, improved by moves
"""

import contextlib
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_pruner.calibration.activations import Inputs
from llm_pruner.calibration.statistics import Statistics
from llm_pruner.calibration.weights import Weights
from llm_pruner.errors import PlanError
from llm_pruner.files import read_state, write_state
from llm_pruner.importance import criterion_of, score
from llm_pruner.model.axes import HIDDEN, MLP, Layers, Widths, heads_per_group
from llm_pruner.model.depth import at_full_depth, shallow_config
from llm_pruner.model.untie import is_tied, untied
from llm_pruner.reconstruction.allocation import changed, improved, layers_by_costs, prices
from llm_pruner.reconstruction.costs import Costs, measure_layers
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.reconstruction.probe import FEW, Probe
from llm_pruner.reconstruction.reconstruct import reconstruct
from llm_pruner.reconstruction.search import Candidate, Space, candidates, cheapest_layers, depths_of, search
from llm_pruner.reconstruction.survey import Survey, survey
from llm_pruner.reconstruction.tokens import Tokens
from llm_pruner.shape.allocate import adaptive_groups, allocate
from llm_pruner.shape.budget import TOLERANCE, Goal, filled_with_neurons
from llm_pruner.shape.counter import ParameterCounter
from llm_pruner.shape.draft import Draft, Searched, Traced
from llm_pruner.validation import fields, filled, list_of, number, text, whole

# the search's: layers are not optimised
QUICK = Settings(epochs=0)
# and it fits on a part of the text
PART = 1 / 4
# so many shapes, whose KL is at most so many times the best one's, then fit on all prompts
FINALISTS, CLOSE = 3, 1.1
# tokens of the survey, at most: it sums the squares of all inputs, which takes as long as the model itself
SURVEYED = 16_384
TRIED = {"layers": list_of(list_of(whole(0))), "cost": number(), "kl": number(0)}
VERSION = 3
LAYERS_STATE = {
    "key": text, "tried": filled(fields(TRIED, tuple(TRIED))), "heads": list_of(number()), "neurons": list_of(number()),
}  # fmt: skip


@dataclass(frozen=True)
class FormSearch:
    """The search for the form of a model.

    Attributes:
        model: The dense model, in evaluation mode.
        draft: What was asked for.
        tokens: Calibration batches.
        minutes: How long shapes may be compared; 0 takes the one to start from.
        per_layer: Whether every layer may get widths of its own.
        seed: Of everything random.
        log: Takes a line for the user.
        folder: Where measured shapes are kept, so that an interrupted search goes on.
        identity: Of model and text, by which an interrupted search is recognised.
    """

    model: Any
    draft: Draft
    tokens: Tokens
    minutes: float
    per_layer: bool = False
    seed: int = 0
    log: Callable[[str], None] = lambda text: None
    folder: Path | None = None
    identity: str = ""

    @property
    def goal(self) -> Goal:
        """What has to be met."""
        assert isinstance(self.draft.shape, Searched), "other drafts say what the widths are"
        return self.draft.shape.goal

    @property
    def _key(self) -> str:
        """What the search is about."""
        return f"{self.identity} {self.goal} {self.draft.axes} {self.per_layer}"

    def _file(self, name: str) -> Path | None:
        """Where what was measured is kept."""
        digest = hashlib.sha256(self._key.encode()).hexdigest()[:16]
        return self.folder and self.folder / f"{name}-{digest}.json"

    def run(self) -> "Found":
        """Return the form to reconstruct the model in, and what was measured on the way."""
        draft = self.draft
        if draft.removes_layers:
            costs = measure_layers(self.model, part_of(self.tokens).fitted)
            return Found(Form(draft.widths, cheapest_layers(costs, len(draft.widths))))
        if not isinstance(draft.shape, Searched) or not (self.minutes or self.per_layer):
            return Found(Form(draft.widths))
        before = draft.traced.counter.before
        found = survey(self.model, draft.traced.groups, self.tokens.some(SURVEYED), before)
        probe = Probe(self.model, found, self.tokens.held_out, before) if found.regressions else None
        own, tried, costs = self._per_layer(found, probe) if self.per_layer else (None, {}, found.costs)
        if own and (probe or not self.minutes):
            return Found(Form(own), tried, found.inputs, costs)
        free = untied(self.model) if is_tied(self.model) and self.goal.whole else None
        try:
            listed = candidates(self._space(draft.shape, found.costs, free), found.costs)
        except PlanError:
            # heads alone, for one, are too few to meet a budget as closely as a search has to
            return Found(Form(own or draft.widths), tried, found.inputs, costs)
        return Found(*self._best(listed, found.costs, probe, own, free), found.inputs, costs)

    def smaller(self, found: "Found", form: Form, draft: Draft) -> Form:
        """Return a form by the costs of an earlier search: nothing is measured.

        Args:
            found: What `run` found.
            form: That of another model, none of whose layers may be exceeded.
            draft: What was asked for; it differs from that of the search in its goal.

        Raises:
            PlanError: No such form meets the goal.
        """
        own, most = replace(self, draft=draft), form.after
        if found.costs is not None and self.per_layer and form.layers is None:
            return Form(layers_by_costs(draft.traced.counter, draft.axes, own.goal, found.costs, most))
        # where nothing was measured, the proportional shape
        listed = [Candidate(draft.widths[0], 0.0)] if form.layers is None else []
        if found.costs is not None and isinstance(draft.shape, Searched):
            with contextlib.suppress(PlanError):
                listed = candidates(own._space(draft.shape, found.costs, None), found.costs) + listed
        for candidate in listed:
            widths = candidate.widths
            if isinstance(widths, Widths) and candidate.layers == form.layers and _within(widths, most[0]):
                return Form((widths,) * len(most), form.layers)
        traced = draft.traced
        if form.layers is not None:
            traced = Traced.of(shallow_config(traced.config, form.layers), traced.counter.before)
        if layers := own._by_neurons(traced.counter, most[0]):
            return Form(layers, form.layers)
        raise PlanError(f"no shape inside that of the size before has {own.goal.parameters:,.0f} parameters")

    def _per_layer(self, found: Survey, probe: Probe | None) -> tuple[Layers, dict[str, Any], Costs]:
        """(widths of its own for every layer, what was tried, the costs in nats as far as they are known)."""
        counter, axes = self.draft.traced.counter, self.draft.axes
        if not probe:
            return layers_by_costs(counter, axes, self.goal, found.costs), {}, found.costs
        cache, before = self._file("layers"), counter.before
        # moves end by the clock: finished layers would not fit the widths of another search
        known = read_state(cache, LAYERS_STATE, VERSION) if cache else {}
        if known.get("key") == self._key:
            costs = found.costs.scaled(known["heads"], known["neurons"])
            listed = [
                Candidate(tuple(before.but(dict(zip(before, own))) for own in one["layers"]), one["cost"], kl=one["kl"])
                for one in known["tried"]
            ]
        else:
            heads, neurons = self._prices(found)
            costs = found.costs.scaled(heads, neurons)
            listed = self._allocated(found, costs, probe)
            if cache and all(map(math.isfinite, [*heads, *neurons, *(each.measured for each in listed)])):
                tried = [
                    {"layers": _numbers(each.widths), "cost": each.expected, "kl": each.measured} for each in listed
                ]
                state = {"key": self._key, "tried": tried, "heads": heads, "neurons": neurons}
                write_state(cache, state, VERSION)
        own = listed[0].widths
        assert not isinstance(own, Widths), "the widths of every layer were measured"
        return own, {"search": [candidate.told() for candidate in listed]}, costs

    @property
    def _share(self) -> float:
        """What goes of the parameters of attention and MLP."""
        counter = self.draft.traced.counter
        return (self.goal.count(counter, counter.full) - self.goal.parameters) / counter.decoder(counter.full)

    def _prices(self, found: Survey) -> tuple[list[float], list[float]]:
        before = self.draft.traced.counter.before
        few = Probe(self.model, found, self.tokens.held_out, before, FEW)
        return prices(found.costs, before, self._share, few.kl)

    def _allocated(self, found: Survey, in_nats: Costs, probe: Probe) -> list[Candidate]:
        """Widths of their own for every layer, measured, the best first."""
        counter, axes = self.draft.traced.counter, self.draft.axes
        before = counter.before
        starts: dict[str, Callable[[], Layers]] = {
            "costs": partial(layers_by_costs, counter, axes, self.goal, found.costs),
            "prices": partial(layers_by_costs, counter, axes, self.goal, in_nats),
            "flap": partial(self._as_flap, found),
            "uniform": self._uniform,
        }
        measured: dict[str, Candidate] = {}
        for name, start in starts.items():
            with contextlib.suppress(PlanError):
                shape = start()
                measured[name] = _candidate(shape, in_nats, probe.kl(changed(shape, before)))
        if not measured:
            starts["costs"]()
        listed = sorted(measured.values(), key=lambda candidate: candidate.measured)
        assert isinstance(listed[0].widths, tuple)
        own, kl, moves = improved(listed[0].widths, listed[0].measured, before, axes, probe.kl, self.minutes, self.seed)
        told = ", ".join(f"{candidate.measured:.4f} ({name})" for name, candidate in measured.items())
        self.log(f"search: KL {told}; {kl:.4f} after {moves} moves between layers")
        return [_candidate(own, in_nats, kl), *listed] if own != listed[0].widths else listed

    def _as_flap(self, found: Survey) -> Layers:
        """FLAP's allocation, AL-AM."""
        counter, weights = self.draft.traced.counter, Weights(dict(self.model.named_parameters()))
        groups = adaptive_groups(self.draft.traced.groups, counter.before, self.draft.axes)
        scores = score(groups, criterion_of("flap"), Statistics(weights, inputs=found.inputs))
        return allocate(counter, groups, scores, self._share, "AL-AM", exact=True)

    def _uniform(self) -> Layers:
        """One width for all, as many heads as there are where neurons can meet the goal alone."""
        counter = self.draft.traced.counter
        return self._by_neurons(counter, counter.before) or self.draft.widths

    def _by_neurons(self, counter: ParameterCounter, shape: Widths) -> Layers | None:
        """A shape in every layer, with the neurons that meet the goal; None where they cannot."""
        if MLP not in self.draft.axes:
            return None
        layers = counter.everywhere(filled_with_neurons(counter, shape, self.goal))
        return layers if self.goal.missed(counter, layers) < TOLERANCE else None

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
        depth, before, some = len(costs.neurons), self.draft.traced.counter.before, part_of(self.tokens)

        def form_of(candidate: Candidate) -> Form:
            if candidate.widths == own:
                return Form(own)
            assert isinstance(candidate.widths, Widths), "only `own` has widths of its own for every layer"
            stay = candidate.layers or range(depth)
            return Form((candidate.widths,) * len(stay), candidate.layers, candidate.untied)

        def rebuilt(tokens: Tokens, candidate: Candidate) -> float:
            planned = Planned.of(self.draft.traced, form_of(candidate))
            dense, layers = free if candidate.untied else self.model, candidate.layers
            groups = planned.dense.groups
            return reconstruct(dense, groups, planned.wide, planned.config, tokens, QUICK, layers=layers).kl

        def probed(candidate: Candidate) -> float:
            assert probe and isinstance(candidate.widths, Widths)
            stay = range(depth) if candidate.layers is None else candidate.layers
            return probe.kl(changed(at_full_depth((candidate.widths,) * len(stay), stay, before, depth), before), stay)

        # the survey knows no other stream
        quick = probe is not None and HIDDEN not in self.draft.axes
        key, log = self._key, self.log
        measure = probed if quick else partial(rebuilt, some)
        found = search(listed, measure, self.minutes, self._file("search"), key)
        tried = {"search": [candidate.told() for candidate in found]}
        log(f"search: {len(found)} of {len(listed)} shapes measured; KL {found[0].kl:.4f} to {found[-1].kl:.4f}")
        close = [candidate for candidate in found[:FINALISTS] if candidate.measured <= CLOSE * found[0].measured]
        close += [Candidate(own, sum(costs.of(*each) for each in enumerate(own)))] if own else []
        if len(close) > 1 and not quick:
            found = search(close, partial(rebuilt, self.tokens), math.inf, self._file("finals"), key)
            tried["finals"] = [candidate.told() for candidate in found]
            log(f"search: the best {len(found)} on all of the text; KL {found[0].kl:.4f} to {found[-1].kl:.4f}")
        return form_of(found[0]), tried


def _numbers(layers: Widths | Layers) -> list[list[int]]:
    """The widths of every layer, in the order of their axes."""
    assert not isinstance(layers, Widths), "the widths of every layer were measured"
    return [list(own.values()) for own in layers]


def _within(own: Widths | Layers, most: Widths) -> bool:
    """Whether a layer is no wider than another, and has no more query heads in a group."""
    assert isinstance(own, Widths), "one layer is compared"
    return all(own[axis] <= most[axis] for axis in own) and heads_per_group(own) <= heads_per_group(most)


def _candidate(layers: Layers, costs: Costs, kl: float) -> Candidate:
    """Widths of its own for every layer, measured."""
    return Candidate(layers, sum(costs.of(*each) for each in enumerate(layers)), kl=kl)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        form: The form to reconstruct the model in.
        tried: What was measured on the way, for the report.
        inputs: {weight of an output projection: statistics of its input in the dense model}, as far as they are known.
        costs: Of heads and neurons, in nats where that is known; None where nothing was measured.
    """

    form: Form
    tried: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Inputs] | None = None
    costs: Costs | None = None


def part_of(tokens: Tokens) -> Tokens:
    """Return PART of the batches to fit on, and all that are held out: comparing wants as much text as there is."""
    return tokens.at(tokens.places(PART * tokens.fitted_size))
