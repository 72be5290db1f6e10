"""`--method best`: a shape is searched, the model rebuilt in it, and the result compared with the plain methods."""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from llm_pruner.architectures import Layers
from llm_pruner.compensate.guard import baseline
from llm_pruner.compensate.rebuild import Recipe, Tokens, rebuild, split
from llm_pruner.config import Options
from llm_pruner.costs import measure_costs
from llm_pruner.depth import make_shallow, renumbered, spread
from llm_pruner.errors import PlanError
from llm_pruner.in_memory import change, plan_for
from llm_pruner.plan import Plan
from llm_pruner.search import candidates, cheapest_layers, depths_of, layers_by_costs, search
from llm_pruner.shape import Shape, shallow
from llm_pruner.weights import Weights

QUICK = 4  # the search fits on one of so many prompts, and does not optimise layers
TRAINED_ON = 131_072  # tokens that the optimisation of a layer sees, in 2 to 8 passes, where nothing else is asked for


@dataclass
class Best:
    """model, plan, config: the result. notes: for the report. dense: the model that was given, as far as it is left."""

    model: object
    plan: Plan
    config: object
    notes: dict = field(default_factory=dict)


def prune_best(
    model,
    shape: Shape,
    options: Options,
    prompts: Sequence[torch.Tensor],
    stopwatch=None,
    say: Callable = lambda text: None,
) -> Best:
    """The model rebuilt in the shape that `options` ask for. `model` gives up its tensors at the end.

    prompts: LongTensors [length]; every eighth is held out. stopwatch: of report.py. Errors as in `rebuild`.
    """
    timed = stopwatch or (lambda phase: contextlib.nullcontext())
    Weights(dict(model.named_parameters())).check_all_finite()
    tokens, notes = split(prompts), {}
    folder = Path(options.work_dir).expanduser() if options.work_dir else None
    identity = ""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        identity = _identity(model, tokens)
    with timed("search"):
        layers, after = _searched(model, shape, options, tokens, folder, identity, notes, say)
    planned = Planned.of(shape, layers, after, options)
    plan, config, wide = planned.plan, planned.config, planned.wide
    recipe = Recipe(epochs=passes(tokens) if options.epochs is None else options.epochs)
    with timed("rebuild"):
        key = hashlib.sha256(repr((identity, layers, after, asdict(recipe))).encode()).hexdigest()
        done = rebuild(model, shape.groups, wide, config, tokens, recipe, folder and folder / key[:16], layers)
    with timed("guard"):
        name, kept, means, plain = baseline(model, shape.groups, wide, tokens, done.dense_stream, layers)
    notes |= {"kl": done.kl, "kl_plain": {name: plain}, "stream_errors": done.errors, "fits": done.fits}
    say(f"KL(dense ‖ pruned) on held-out calibration text: {done.kl:.4f}; plain {name} at this shape: {plain:.4f}")
    if not done.kl <= plain:
        say(f"note: plain {name} is better here, so that is what is kept")
        simple = replace(options, importance=name, method=None, compensate="bias" if means else "none")
        planned = Planned.of(shape, layers, after, simple)
        if layers:
            make_shallow(model, layers)
        plan = replace(planned.plan, kept=planned.named(kept))
        pruned, config = change(model, planned.shape, plan, planned.config, planned.named(means), simple)
        return Best(pruned, plan, config, notes)
    done.settle(model)
    return Best(done.model, replace(plan, kept=planned.named(done.kept)), config, notes)


@dataclass(frozen=True)
class Planned:
    """A plan and what belongs to it. shape: of a model of the layers that stay. wide: the plan with the widths of all
    layers of the dense model, as far as they stay; what it says of the others means nothing."""

    shape: Shape
    layers: Sequence[int] | None
    plan: Plan
    config: object
    wide: Plan

    @classmethod
    def of(cls, shape: Shape, layers: Sequence[int] | None, after: Layers, options: Options) -> "Planned":
        """layers: those that stay, None for all. after: their widths."""
        if layers is None:
            plan, config = plan_for(shape.skeleton, shape, after, options)
            return cls(shape, None, plan, config, plan)
        own, whole = shallow(shape, layers), shape.ledger.all_layers(shape.ledger.before)
        number = shape.ledger.num_layers
        dense, _ = plan_for(shape.skeleton, shape, whole, options)
        plan, config = plan_for(own.skeleton, own, after, options)
        plan = replace(
            plan,
            layers=list(layers),
            num_layers_before=number,
            config=plan.config | {"num_hidden_layers": len(layers)},
            parameters_before=dense.parameters_before,
            decoder_before=dense.decoder_before,
            bytes_before=dense.bytes_before,
        )
        return cls(own, layers, plan, config, replace(plan, after=spread(after, layers, plan.before, number)))

    def named(self, by_name: Mapping) -> dict:
        """What belongs to groups or parameters of the dense model, by their names in the pruned one."""
        if self.layers is None:
            return dict(by_name)
        names = {name: renumbered(name, self.layers) for name in by_name}
        return {new: by_name[name] for name, new in names.items() if new}


def _searched(model, shape: Shape, options: Options, tokens: Tokens, folder, identity: str, notes: dict, say: Callable):
    """(the layers that stay, None for all; the widths of each)."""
    if not shape.depth and (shape.budget is None or not (options.search_minutes or options.per_layer)):
        return None, shape.after
    ledger, config, kinds = shape.ledger, shape.skeleton.config, shape.kinds
    some = part_of(tokens)
    fitted = [batch for batch, held in zip(some.batches, some.held, strict=True) if not held]
    costs = measure_costs(model, shape.groups, fitted, ledger.before)
    if shape.depth:
        return cheapest_layers(costs, shape.depth), shape.after[: shape.depth]
    if options.per_layer:
        return None, layers_by_costs(ledger, config, kinds, shape.budget, costs)

    def measure(candidate) -> float:
        after = (candidate.widths,) * len(candidate.layers or costs.neurons)
        planned = Planned.of(shape, candidate.layers, after, options)
        quick = Recipe(epochs=0)
        return rebuild(model, shape.groups, planned.wide, planned.config, some, quick, layers=candidate.layers).kl

    depths = [cheapest_layers(costs, number) for number in depths_of(ledger.num_layers)]
    fewer = {layers: shallow(shape, layers).ledger for layers in depths}
    try:
        listed = candidates(ledger, config, kinds, shape.budget, costs, fewer)
    except PlanError:  # heads alone, for one, are too few to meet a budget as closely as a search has to
        return None, shape.after
    cache = folder and folder / "search.json"
    key = f"{identity} {shape.budget}"
    found = search(listed, measure, options.search_minutes, cache, key)
    notes["search"] = [asdict(candidate) for candidate in found]
    best = found[0]
    after = (best.widths,) * len(best.layers or costs.neurons)
    say(f"search: {len(found)} of {len(listed)} shapes measured; KL {found[0].kl:.4f} to {found[-1].kl:.4f}")
    return best.layers, after


def part_of(tokens: Tokens) -> Tokens:
    """One of QUICK batches to fit on, and all that are held out: comparing wants as much text as there is."""
    places = [place for place, held in enumerate(tokens.held) if held or place % QUICK == 0]
    return Tokens([tokens.batches[place] for place in places], [tokens.held[place] for place in places])


def passes(tokens: Tokens) -> int:
    """How often the optimisation goes over the text."""
    fitted = sum(batch.numel() for batch, held in zip(tokens.batches, tokens.held, strict=True) if not held)
    return max(2, min(8, round(TRAINED_ON / fitted)))


def _identity(model, tokens: Tokens) -> str:
    """A digest of the weights and the text, by which an interrupted run is recognised."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        digest.update(f"{name} {tuple(parameter.shape)} {values.sum().item()} {values.abs().sum().item()}".encode())
    for batch, held in zip(tokens.batches, tokens.held, strict=True):
        digest.update(repr((batch.tolist(), held)).encode())
    return digest.hexdigest()
