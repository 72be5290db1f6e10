"""The search for a shape: which heads, kv groups, neurons and hidden channels meet a budget with the least damage.

Widths that are the same in every layer are few: all are listed, ordered by what the second-order costs (costs.py)
expect of them, and the first are rebuilt on a part of the text and ranked by KL(dense ‖ pruned) on held-out tokens, as
long as the time lasts. Widths of their own for every layer are too many, and come from the costs alone.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from llm_pruner.errors import PlanError
from llm_pruner.model.families import Layers, Widths, family_of, holds
from llm_pruner.model.groups import HEADS, HIDDEN, KV_HEADS, MLP
from llm_pruner.reconstruction.costs import Costs
from llm_pruner.shape.budget import TOLERANCE, Budget, Ledger

PATIENCE = 6  # candidates in a row that are no better than the best end the search, once every family has had its turn
HIDDEN_STEPS = 8  # the hidden sizes that are tried are multiples of so many parts


Stay = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """widths: of every layer, or one after the other where they differ. expected: its second-order cost. layers: those
    of the dense model that stay, None for all. untied: lm_head no longer shares its weight with the embeddings.
    kl: measured, in nats per token, or None."""

    widths: Widths | Layers
    expected: float
    layers: tuple[int, ...] | None = None
    untied: bool = False
    kl: float | None = None


def candidates(
    ledger: Ledger,
    config,
    kinds: Sequence[str],
    budget: Budget,
    costs: Costs,
    shallow: Mapping[Stay, Ledger] | None = None,
    untied: Ledger | None = None,
) -> list[Candidate]:
    """Every shape that meets the budget by its neurons, the best of each hidden_size and depth first.

    shallow: {the layers that stay: the ledger of a model of those}, for every depth that is tried besides the full one.
    untied: the ledger of the model with an lm_head of its own, which counts, where that is tried.
    PlanError when there is none.
    """
    before, found = ledger.before, {}
    hidden_sizes = _hidden_sizes(before, config, HIDDEN in kinds)
    sizes = [(None, False, ledger, hidden) for hidden in hidden_sizes]
    sizes += [(layers, False, own, before.hidden_size) for layers, own in (shallow or {}).items()]
    sizes += [(None, True, untied, hidden) for hidden in hidden_sizes] if untied else []
    for layers, own_head, ledger, hidden in sizes:
        stay = range(len(costs.neurons)) if layers is None else layers
        gone = sum(cost for layer, cost in enumerate(costs.layers) if layer not in stay)
        shapes = []
        for kv_heads, per_group in _heads(before, kinds):
            shape = replace(
                before, hidden_size=hidden, num_key_value_heads=kv_heads, num_attention_heads=kv_heads * per_group
            )
            shape = _filled(ledger, shape, budget, MLP in kinds)
            if shape and (shape != before or layers) and holds(config, shape):
                expected = gone + sum(costs.of(layer, shape) for layer in stay)
                shapes.append(Candidate(shape, expected, layers, own_head))
        found[hidden, layers, own_head] = sorted(shapes, key=lambda candidate: candidate.expected)
    longest = max(map(len, found.values()), default=0)
    ordered = [shapes[rank] for rank in range(longest) for shapes in found.values() if rank < len(shapes)]
    if not ordered:
        raise PlanError(f"no shape with fewer {', '.join(kinds)} meets the budget; ask for less, or --prune more kinds")
    return ordered


def depths_of(num_layers: int) -> range:
    """The numbers of layers that are tried besides all: down to two thirds, at most four of them."""
    least = num_layers - num_layers // 3
    return range(num_layers - 1, least - 1, -max(1, -(-(num_layers - least) // 4)))


def cheapest_layers(costs: Costs, number: int) -> Stay:
    """The `number` layers that change the stream most, ascending; the others go."""
    ranked = sorted(range(len(costs.layers)), key=lambda layer: -costs.layers[layer])
    return tuple(sorted(ranked[:number]))


def _hidden_sizes(before: Widths, config, shrinks: bool) -> list[int]:
    if not shrinks:
        return [before.hidden_size]
    unit = before.head_dim if family_of(config.model_type).derived_head_dim else 1
    step = max(1, before.hidden_size // HIDDEN_STEPS // unit) * unit
    return list(range(before.hidden_size, before.hidden_size // 2 - 1, -step))


def _heads(before: Widths, kinds: Sequence[str]):
    grouped = before.grouped
    fewer_groups = KV_HEADS in kinds if grouped else HEADS in kinds or KV_HEADS in kinds
    for kv_heads in range(before.num_key_value_heads, 0, -1) if fewer_groups else [before.num_key_value_heads]:
        of_each = range(before.heads_per_group, 0, -1) if grouped and HEADS in kinds else [before.heads_per_group]
        for per_group in of_each:
            yield kv_heads, per_group


def _filled(ledger: Ledger, shape: Widths, budget: Budget, by_neurons: bool) -> Widths | None:
    """The shape with the neurons that the budget leaves, or None when it leaves too few or is missed by over 0.5 %."""
    count = lambda widths: budget.count(ledger, ledger.all_layers(widths))  # noqa: E731
    if by_neurons:
        one = count(shape) - count(replace(shape, intermediate_size=shape.intermediate_size - 1))
        neurons = shape.intermediate_size + round((budget.goal - count(shape)) / one)
        shape = replace(shape, intermediate_size=max(1, min(neurons, shape.intermediate_size)))
    missed = abs(count(shape) - budget.goal) / max(budget.goal, 1)
    return shape if missed < 0.005 else None


def search(
    options: list[Candidate],
    measure: Callable[[Candidate], float],
    minutes: float,
    cache: Path | None = None,
    key: str = "",
) -> list[Candidate]:
    """The candidates that were measured, the best first; at least one is.

    measure: its KL. cache: a JSON file with what an interrupted search of the same `key` measured.
    """
    known, spent = _read(cache, key)
    families = {(getattr(each.widths, "hidden_size", None), each.layers, each.untied) for each in options}
    done, best_at, started = [], 0, time.monotonic() - spent
    for candidate in tqdm(options, desc="search", unit="shape", delay=2, leave=False):
        name = f"{candidate.widths} {candidate.layers or 'all'}{' untied' * candidate.untied}"
        if name not in known:
            if done and time.monotonic() - started > 60 * minutes:
                break
            kl = measure(candidate)
            known[name] = math.inf if math.isnan(kl) else kl
            if cache:
                state = {"key": key, "kl": known, "seconds": time.monotonic() - started}
                partial = cache.with_name(f".{cache.name}.{os.getpid()}.partial")
                partial.write_text(json.dumps(state), encoding="utf-8")
                os.replace(partial, cache)
        done.append(replace(candidate, kl=known[name]))
        if done[-1].kl < done[best_at].kl:
            best_at = len(done) - 1
        if len(done) - max(best_at + 1, len(families)) >= PATIENCE:
            break
    return sorted(done, key=lambda candidate: candidate.kl)


def _read(cache: Path | None, key: str) -> tuple[dict[str, float], float]:
    """(what was measured, the seconds that it took)."""
    if cache is None or not cache.is_file():
        return {}, 0.0
    try:
        found = json.loads(cache.read_text(encoding="utf-8"))
        return (dict(found["kl"]), float(found["seconds"])) if found["key"] == key else ({}, 0.0)
    except (ValueError, KeyError, TypeError):
        return {}, 0.0


def layers_by_costs(ledger: Ledger, kinds: Sequence[str], budget: Budget, costs: Costs) -> Layers:
    """Widths of its own for every layer: the least total cost at the budget (one price per parameter for all layers).

    PlanError when the budget cannot be met.
    """
    before, total = ledger.before, ledger.num_layers
    every = ledger.all_layers(before)
    full = budget.count(ledger, every)
    heads = list(_heads(before, kinds))
    one = full - budget.count(ledger, (replace(before, intermediate_size=before.intermediate_size - 1), *every[1:]))
    price_of = {}
    for kv_heads, per_group in heads:
        fewer = replace(before, num_key_value_heads=kv_heads, num_attention_heads=kv_heads * per_group)
        price_of[kv_heads, per_group] = full - budget.count(ledger, (fewer, *every[1:]))
    choices = []
    for layer in range(total):
        neurons = [kept for kept, _ in costs.neurons[layer]] if MLP in kinds else [before.intermediate_size]
        choices.append(
            [
                (costs.of(layer, widths), price_of[kv, each] + one * (before.intermediate_size - kept), widths)
                for kv, each in heads
                for kept in neurons
                for widths in [
                    replace(before, num_key_value_heads=kv, num_attention_heads=kv * each, intermediate_size=kept)
                ]
            ]
        )
    wanted = full - budget.goal

    def at(rate: float):
        return [min(layer, key=lambda choice: choice[0] - rate * choice[1]) for layer in choices]

    low, high = 0.0, 1.0
    while sum(saved for _, saved, _ in at(high)) < wanted and high < 1e12:
        high *= 4
    for _ in range(80):
        rate = (low + high) / 2
        low, high = (rate, high) if sum(saved for _, saved, _ in at(rate)) < wanted else (low, rate)
    chosen = [widths for _, _, widths in at(high)]
    spare = int((sum(saved for _, saved, _ in at(high)) - wanted) // one) if MLP in kinds else 0
    while spare > 0:  # the points of the curves are some neurons apart: give back what is too much
        gains = [
            (costs.of(i, w) - costs.of(i, replace(w, intermediate_size=w.intermediate_size + 1)), i)
            for i, w in enumerate(chosen)
            if w.intermediate_size < before.intermediate_size
        ]
        if not gains:
            break
        _, place = max(gains)
        chosen[place] = replace(chosen[place], intermediate_size=chosen[place].intermediate_size + 1)
        spare -= 1
    if budget.missed(ledger, tuple(chosen)) > (TOLERANCE if budget.whole else 0.005):
        raise PlanError(
            f"{', '.join(kinds)} of single layers cannot meet the budget; ask for less, or --prune more kinds"
        )
    return tuple(chosen)
