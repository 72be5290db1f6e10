"""`--method best`: a shape is searched, the model rebuilt in it, and the result compared with the plain methods."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from llm_pruner.compensate.guard import baseline
from llm_pruner.compensate.rebuild import Recipe, Tokens, rebuild, split
from llm_pruner.config import Options
from llm_pruner.costs import measure_costs
from llm_pruner.in_memory import change, plan_for
from llm_pruner.plan import Plan
from llm_pruner.search import candidates, layers_by_costs, search
from llm_pruner.shape import Shape
from llm_pruner.weights import Weights

QUICK = 4  # the search rebuilds on one of so many prompts, and does not optimise layers


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
        after = _searched(model, shape, options, prompts, folder, identity, notes, say)
    plan, config = plan_for(model, shape, after, options)
    recipe = Recipe(epochs=options.epochs)
    with timed("rebuild"):
        key = hashlib.sha256(repr((identity, after, asdict(recipe))).encode()).hexdigest()
        done = rebuild(model, shape.groups, plan, config, tokens, recipe, folder and folder / key[:16])
    with timed("guard"):
        name, kept, means, plain = baseline(model, shape.groups, plan, tokens, done.dense_stream)
    notes |= {"kl": done.kl, "kl_plain": {name: plain}, "stream_errors": done.errors, "fits": done.fits}
    say(f"KL(dense ‖ pruned) on held-out calibration text: {done.kl:.4f}; plain {name} at this shape: {plain:.4f}")
    if not done.kl <= plain:
        say(f"note: plain {name} is better here, so that is what is kept")
        simple = replace(options, importance=name, method=None, compensate="bias" if means else "none")
        plan = replace(plan_for(model, shape, after, simple)[0], kept=kept)
        config = plan_for(model, shape, after, simple)[1]
        pruned, config = change(model, shape, plan, config, means, simple)
        return Best(pruned, plan, config, notes)
    done.settle(model)
    return Best(done.model, replace(plan, kept=done.kept), config, notes)


def _searched(model, shape: Shape, options: Options, prompts, folder, identity: str, notes: dict, say: Callable):
    """The widths of every layer."""
    if shape.budget is None or not (options.search_minutes or options.per_layer):
        return shape.after
    ledger, config, kinds = shape.ledger, shape.skeleton.config, shape.kinds
    some = split(prompts[::QUICK] if len(prompts) >= 8 * QUICK else prompts)
    fitted = [batch for batch, held in zip(some.batches, some.held, strict=True) if not held]
    costs = measure_costs(model, shape.groups, fitted, ledger.before)
    if options.per_layer:
        return layers_by_costs(ledger, config, kinds, shape.budget, costs)

    def measure(widths) -> float:
        after = ledger.all_layers(widths)
        plan, new_config = plan_for(model, shape, after, options)
        return rebuild(model, shape.groups, plan, new_config, some, Recipe(epochs=0)).kl

    cache = folder and folder / "search.json"
    listed = candidates(ledger, config, kinds, shape.budget, costs)
    key = f"{identity} {shape.budget}"
    found = search(listed, measure, options.search_minutes, cache, key)
    notes["search"] = [{"widths": c.widths.asdict(), "expected": c.expected, "kl": c.kl} for c in found]
    say(f"search: {len(found)} of {len(listed)} shapes measured; the best: {json.dumps(found[0].widths.asdict())}")
    return ledger.all_layers(found[0].widths)


def _identity(model, tokens: Tokens) -> str:
    """A digest of the weights and the text, by which an interrupted run is recognised."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        digest.update(f"{name} {tuple(parameter.shape)} {values.sum().item()} {values.abs().sum().item()}".encode())
    for batch, held in zip(tokens.batches, tokens.held, strict=True):
        digest.update(repr((batch.tolist(), held)).encode())
    return digest.hexdigest()
