"""The search for a shape: which heads, kv groups, neurons and hidden channels meet a budget with the least damage.

Widths that are the same in every layer are few: all are listed, ordered by what the second-order costs (costs.py)
expect of them, and the first are reconstructed on a part of the text and ranked by KL(dense ‖ pruned) on held-out
tokens, as long as the time lasts. Widths of their own for every layer are too many, and come from the costs alone.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from llm_pruner.errors import PlanError
from llm_pruner.files import read_state, write_state
from llm_pruner.model.axes import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    MLP,
    Axis,
    Layers,
    Widths,
    heads_per_group,
    is_grouped,
    with_heads,
)
from llm_pruner.model.families import family_of, holds
from llm_pruner.reconstruction.costs import Costs
from llm_pruner.shape.budget import Goal, filled_with_neurons
from llm_pruner.shape.counter import ParameterCounter
from llm_pruner.validation import each, maybe, number, text

# candidates in a row that are no better than the best end the search, once every family has had its turn
PATIENCE = 6
# the hidden sizes that are tried are multiples of so many parts
HIDDEN_STEPS = 8


Stay = tuple[int, ...]


@dataclass(frozen=True)
class Candidate:
    """A shape that meets the goal.

    Attributes:
        widths: Of every layer, or one after the other where they differ.
        expected: Its second-order cost.
        layers: Those of the dense model that stay, None for all.
        untied: Whether lm_head no longer shares its weight with the embeddings.
        kl: The measured KL(dense ‖ pruned) in nats per token, or None.
    """

    widths: Widths | Layers
    expected: float
    layers: Stay | None = None
    untied: bool = False
    kl: float | None = None

    @property
    def measured(self) -> float:
        """`kl`, of a candidate that was measured."""
        assert self.kl is not None, "the candidate was not measured"
        return self.kl

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.widths} {self.layers or 'all'}{' untied' * self.untied}"

    def told(self) -> dict[str, Any]:
        """Return the candidate as plain data."""
        own = self.widths
        widths = own.by_field() if isinstance(own, Widths) else [layer.by_field() for layer in own]
        return {"widths": widths} | {n: getattr(self, n) for n in ("expected", "layers", "untied", "kl")}


@dataclass(frozen=True)
class Space:
    """Where candidates are looked for.

    Attributes:
        counter: Of the dense model.
        config: Its configuration.
        axes: Those that may shrink.
        goal: What has to be met.
        shallow: {the layers that stay: the counter of a model of those}, for every depth that is tried besides the
            full one.
        untied: The counter of the model with an lm_head of its own, where that is tried.
    """

    counter: ParameterCounter
    config: Any
    axes: Sequence[Axis]
    goal: Goal
    shallow: Mapping[Stay, ParameterCounter]
    untied: ParameterCounter | None = None


def candidates(space: Space, costs: Costs) -> list[Candidate]:
    """Return every shape that meets the goal by its neurons, the best of each hidden_size and depth first.

    Raises:
        PlanError: There is none.
    """
    before = space.counter.before
    hidden_sizes = _hidden_sizes(before, space.config, HIDDEN in space.axes)
    variants: list[tuple[Stay | None, bool, ParameterCounter, int]]
    variants = [(None, False, space.counter, hidden) for hidden in hidden_sizes]
    variants += [(layers, False, own, before[HIDDEN]) for layers, own in space.shallow.items()]
    variants += [(None, True, space.untied, hidden) for hidden in hidden_sizes] if space.untied else []
    found = [_of_variant(space, costs, *variant) for variant in variants]
    longest = max(map(len, found), default=0)
    ordered = [shapes[rank] for rank in range(longest) for shapes in found if rank < len(shapes)]
    if not ordered:
        names = ", ".join(axis.name for axis in space.axes)
        raise PlanError(f"no shape with fewer {names} meets the budget; ask for less, or `prune` more axes")
    return ordered


def _of_variant(
    space: Space, costs: Costs, layers: Stay | None, untied: bool, counter: ParameterCounter, hidden: int
) -> list[Candidate]:
    """Candidates of one depth and one hidden_size, those that are expected to be the best first."""
    before = space.counter.before
    stay = range(len(costs.neurons)) if layers is None else layers
    gone = sum(cost for layer, cost in enumerate(costs.layers) if layer not in stay)
    shapes = []
    for kv_heads, per_group in head_counts(before, space.axes):
        shape = with_heads(before.but({HIDDEN: hidden}), kv_heads, per_group)
        filled = _filled(counter, shape, space.goal, MLP in space.axes)
        if filled and (filled != before or layers) and holds(space.config, filled):
            expected = gone + sum(costs.of(layer, filled) for layer in stay)
            shapes.append(Candidate(filled, expected, layers, untied))
    return sorted(shapes, key=lambda candidate: candidate.expected)


def depths_of(num_layers: int) -> range:
    """Return the numbers of layers that are tried besides all: down to two thirds, at most four of them."""
    least = num_layers - num_layers // 3
    return range(num_layers - 1, least - 1, -max(1, -(-(num_layers - least) // 4)))


def cheapest_layers(costs: Costs, number: int) -> Stay:
    """Return the `number` layers that change the stream most, ascending; the others go."""
    ranked = sorted(range(len(costs.layers)), key=lambda layer: -costs.layers[layer])
    return tuple(sorted(ranked[:number]))


def _hidden_sizes(before: Widths, config, shrinks: bool) -> list[int]:
    if not shrinks:
        return [before[HIDDEN]]
    unit = before[HEAD_DIM] if family_of(config.model_type).derived_head_dim else 1
    step = max(1, before[HIDDEN] // HIDDEN_STEPS // unit) * unit
    return list(range(before[HIDDEN], before[HIDDEN] // 2 - 1, -step))


def head_counts(before: Widths, axes: Sequence[Axis]):
    """Yield (kv heads, query heads of each) of every shape that attention may have."""
    grouped, most = is_grouped(before), heads_per_group(before)
    fewer_groups = KV_HEADS in axes if grouped else HEADS in axes or KV_HEADS in axes
    for kv_heads in range(before[KV_HEADS], 0, -1) if fewer_groups else [before[KV_HEADS]]:
        for per_group in range(most, 0, -1) if grouped and HEADS in axes else [most]:
            yield kv_heads, per_group


def _filled(counter: ParameterCounter, shape: Widths, goal: Goal, by_neurons: bool) -> Widths | None:
    """The shape with the neurons that the goal leaves, or None when it leaves too few or is missed by over 0.5 %."""
    if by_neurons:
        shape = filled_with_neurons(counter, shape, goal)
    count = goal.count(counter, counter.everywhere(shape))
    missed = abs(count - goal.parameters) / max(goal.parameters, 1)
    return shape if missed < 0.005 else None


STATE = {"key": text, "kl": each(maybe(number())), "seconds": number(0)}


def search(
    listed: Sequence[Candidate],
    measure: Callable[[Candidate], float],
    minutes: float,
    cache: Path | None = None,
    key: str = "",
) -> list[Candidate]:
    """Measure candidates in their order and return those that were, the best first; at least one is.

    Args:
        listed: The candidates.
        measure: Returns the KL of one, in nats per token.
        minutes: How long candidates may be measured.
        cache: A file with what an interrupted search of the same `key` measured.
        key: What the search is about.
    """
    known, spent = _read(cache, key)
    families = {
        (each.widths[HIDDEN] if isinstance(each.widths, Widths) else None, each.layers, each.untied) for each in listed
    }
    done: list[Candidate] = []
    best_at, started = 0, time.monotonic() - spent
    for candidate in tqdm(listed, desc="search", unit="shape", delay=2, leave=False):
        if candidate.name not in known:
            if done and time.monotonic() - started > 60 * minutes:
                break
            kl = measure(candidate)
            known[candidate.name] = math.inf if math.isnan(kl) else kl
            if cache:
                finite = {name: value if math.isfinite(value) else None for name, value in known.items()}
                write_state(cache, {"key": key, "kl": finite, "seconds": time.monotonic() - started})
        done.append(replace(candidate, kl=known[candidate.name]))
        if done[-1].measured < done[best_at].measured:
            best_at = len(done) - 1
        if len(done) - max(best_at + 1, len(families)) >= PATIENCE:
            break
    return sorted(done, key=lambda candidate: candidate.measured)


def _read(cache: Path | None, key: str) -> tuple[dict[str, float], float]:
    """(what was measured, the seconds that it took)."""
    found = read_state(cache, STATE) if cache else {}
    if found.get("key") != key:
        return {}, 0.0
    return {name: math.inf if kl is None else kl for name, kl in found["kl"].items()}, found["seconds"]
