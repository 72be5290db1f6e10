"""`--method best`: a shape is searched, the model rebuilt in it, and the result compared with the plain methods."""

import contextlib
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from llm_pruner.calibration.layerwise import not_finite
from llm_pruner.calibration.weights import Weights
from llm_pruner.config.prune import Options
from llm_pruner.errors import PlanError
from llm_pruner.model.depth import make_shallow, shallow_config
from llm_pruner.model.surgery import empty
from llm_pruner.model.untie import is_tied, untied
from llm_pruner.pruning import change
from llm_pruner.reconstruction.baseline import baseline
from llm_pruner.reconstruction.costs import measure_costs, measure_layers
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.reconstruction.reconstruct import Recipe, Tokens, rebuild, split
from llm_pruner.reconstruction.search import (
    Candidate,
    candidates,
    cheapest_layers,
    depths_of,
    layers_by_costs,
    search,
)
from llm_pruner.shape.draft import Shape, variant
from llm_pruner.shape.plan import Plan

QUICK = Recipe(epochs=0)  # the search's: layers are not optimised
PART = 4  # and it fits on one of so many prompts
FINALISTS, CLOSE = 3, 1.1  # so many shapes, whose KL is at most so many times the best one's, then fit on all prompts
TRAINED_ON = 131_072  # tokens that the optimisation of a layer sees, in 2 to 8 passes, where nothing else is asked for


@dataclass
class Best:
    """model, plan, config: the result. notes: for the report."""

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
        form = _searched(model, shape, options, tokens, folder, identity, notes, say)
    planned = Planned.of(shape, form, options)
    groups, wide, layers = planned.dense.groups, planned.wide, form.layers
    dense = untied(model) if form.untied else model
    epochs = passes(tokens) if options.epochs is None else options.epochs
    recipe = Recipe(epochs=epochs, seed=options.seed)
    with timed("rebuild"):
        key = hashlib.sha256(repr((identity, form, asdict(recipe))).encode()).hexdigest()
        done = rebuild(dense, groups, wide, planned.config, tokens, recipe, folder and folder / key[:16], layers)
    with timed("guard"):
        name, kept, means, plain = baseline(dense, groups, wide, tokens, done.dense_stream, layers)
    if not (math.isfinite(done.kl) or math.isfinite(plain)):
        raise not_finite("the pruned model's logits are NaN or Inf on the calibration data", dense.dtype)
    notes |= {"kl": done.kl, "kl_plain": {name: plain}, "stream_errors": done.errors, "fits": done.fits}
    if dense is not model:
        empty(model)  # what the two share goes with the other's
    say(f"KL(dense ‖ pruned) on held-out calibration text: {done.kl:.4f}; plain {name} at this shape: {plain:.4f}")
    if math.isfinite(done.kl) and not plain < done.kl:  # NaN is no better than anything
        plan = replace(planned.plan, kept=planned.named(done.kept))
        return Best(done.settle(dense), plan, planned.config, notes)
    say(f"note: plain {name} is better here, so that is what is kept")
    simple = replace(options, importance=name, method=None, compensate="bias" if means else "none")
    planned = Planned.of(shape, form, simple)
    if layers:
        make_shallow(dense, layers)
    plan = replace(planned.plan, kept=planned.named(kept))
    pruned, config = change(dense, planned.shape, plan, planned.config, planned.named(means), simple)
    return Best(pruned, plan, config, notes)


def _searched(
    model, shape: Shape, options: Options, tokens: Tokens, folder, identity: str, notes: dict, say: Callable
) -> Form:
    if not shape.depth and (shape.budget is None or not (options.search_minutes or options.per_layer)):
        return Form(shape.after)
    ledger, config, kinds = shape.ledger, shape.skeleton.config, shape.kinds
    some = part_of(tokens)
    fitted = [batch for batch, held in zip(some.batches, some.held, strict=True) if not held]
    if shape.depth:
        return Form(shape.after[: shape.depth], cheapest_layers(measure_layers(model, fitted), shape.depth))
    costs = measure_costs(model, shape.groups, fitted, ledger.before)
    own = layers_by_costs(ledger, kinds, shape.budget, costs) if options.per_layer else None
    if own and not options.search_minutes:
        return Form(own)
    free = untied(model) if is_tied(model) and shape.budget.whole else None

    def form_of(candidate: Candidate) -> Form:
        if candidate.widths == own:
            return Form(own)
        return Form((candidate.widths,) * len(candidate.layers or costs.neurons), candidate.layers, candidate.untied)

    def measure(text: Tokens, candidate: Candidate) -> float:
        planned = Planned.of(shape, form_of(candidate), options)
        dense, layers = free if candidate.untied else model, candidate.layers
        return rebuild(dense, planned.dense.groups, planned.wide, planned.config, text, QUICK, layers=layers).kl

    numbers = () if options.prune else depths_of(ledger.num_layers)  # what --prune names goes, and nothing else
    depths = [cheapest_layers(costs, number) for number in numbers]
    fewer = {layers: variant(shape, shallow_config(config, layers)).ledger for layers in depths}
    own_head = variant(shape, free.config).ledger if free else None
    try:
        listed = candidates(ledger, config, kinds, shape.budget, costs, fewer, own_head)
    except PlanError:  # heads alone, for one, are too few to meet a budget as closely as a search has to
        return Form(own or shape.after)
    key = f"{identity} {shape.budget} {kinds} {options.per_layer}"
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    found = search(
        listed, partial(measure, some), options.search_minutes, folder and folder / f"search-{name}.json", key
    )
    notes["search"] = [asdict(candidate) for candidate in found]
    say(f"search: {len(found)} of {len(listed)} shapes measured; KL {found[0].kl:.4f} to {found[-1].kl:.4f}")
    close = [candidate for candidate in found[:FINALISTS] if candidate.kl <= CLOSE * found[0].kl]
    close += [Candidate(own, sum(costs.of(*each) for each in enumerate(own)))] if own else []
    if len(close) > 1:
        found = search(close, partial(measure, tokens), math.inf, folder and folder / f"finals-{name}.json", key)
        notes["finals"] = [asdict(candidate) for candidate in found]
        say(f"search: the best {len(found)} on all of the text; KL {found[0].kl:.4f} to {found[-1].kl:.4f}")
    return form_of(found[0])


def part_of(tokens: Tokens) -> Tokens:
    """One of PART batches to fit on, and all that are held out: comparing wants as much text as there is."""
    places = [place for place, held in enumerate(tokens.held) if held or place % PART == 0]
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
