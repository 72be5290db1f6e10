"""The search for one shape of all layers: what is listed, how long it is measured, and that it goes on."""

import itertools
import json
import math
from dataclasses import replace

import pytest

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, MLP, heads_per_group
from llm_pruner.model.families import holds
from llm_pruner.reconstruction import search as module
from llm_pruner.reconstruction.search import (
    PATIENCE,
    Candidate,
    cheapest_layers,
    depths_of,
    search,
)
from tests.support import toys
from tests.support.budgets import budget_of, candidates, counted, made_up, missed, total

BLOCK = (KV_HEADS, HEADS, MLP)
FINE = {"intermediate_size": 320}  # neurons small enough to meet any budget


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.5])
@pytest.mark.parametrize(
    ("case", "axes"),
    [("llama", (HIDDEN, *BLOCK)), ("llama_multi_head", BLOCK), ("qwen2", (HEADS, MLP)), ("mistral", (KV_HEADS, MLP)),
     ("gpt2", (MLP,)), ("gpt_neox", (HIDDEN, HEADS, MLP))],
)  # fmt: skip
def test_candidates_meet_the_budget_and_are_legal(case, axes, share, whole):
    counter, config = counted(case, **FINE if case != "gpt2" else {})
    budget = budget_of(counter, share, whole)
    costs, before = made_up(counter), counter.before
    listed = candidates(counter, config, axes, budget, costs)
    assert len({candidate.widths for candidate in listed}) == len(listed) > 0
    for candidate in listed:
        widths = candidate.widths
        assert missed(counter, budget, counter.everywhere(widths)) < 0.005
        assert holds(config, widths)
        assert widths[HEAD_DIM] == before[HEAD_DIM]
        for axis, width in widths.items():
            assert 1 <= width <= before[axis]
        assert widths[HIDDEN] == before[HIDDEN] or HIDDEN in axes
        assert widths[KV_HEADS] == before[KV_HEADS] or set(axes) & {KV_HEADS, HEADS}
        assert heads_per_group(widths) == heads_per_group(before) or HEADS in axes
        narrow = widths.but({HIDDEN: before[HIDDEN]})
        assert candidate.expected == pytest.approx(total(costs, counter.everywhere(narrow)))
    for hidden in {candidate.widths[HIDDEN] for candidate in listed}:
        expected = [candidate.expected for candidate in listed if candidate.widths[HIDDEN] == hidden]
        assert expected == sorted(expected)


def test_every_hidden_size_is_tried_before_the_second_best_of_one():
    counter, config = counted("llama")
    listed = candidates(counter, config, (HIDDEN, *BLOCK), budget_of(counter, 0.3, True), made_up(counter))
    sizes = [candidate.widths[HIDDEN] for candidate in listed]
    first = sizes[: len(set(sizes))]
    assert len(set(first)) == len(first) > 2
    assert first == sorted(first, reverse=True)


def test_hidden_sizes_go_with_whole_heads():
    """Where head_dim, 8, is derived from the two: in steps of 48 / 8 there would be no other."""
    counter, config = counted("gpt_neox", **FINE)
    listed = candidates(counter, config, (HIDDEN, HEADS, MLP), budget_of(counter, 0.3, True), made_up(counter))
    assert {(c.widths[HIDDEN], c.widths[HEADS]) for c in listed} == {(48, 6), (40, 5)}


@pytest.mark.parametrize(("share", "least", "most"), [(0.1, 1, 7), (0.7, 8, 8), (0.82, 1, 7)])
def test_all_heads_that_a_budget_allows_are_listed(share, least, most):
    """Of 4 kv groups of 1 or 2 heads: neurons are too few to compensate for most of them, or these too large."""
    counter, config = counted("llama", **FINE)
    budget, possible = budget_of(counter, share, False), set()
    listed = candidates(counter, config, BLOCK, budget, made_up(counter))
    for kv_heads, each in itertools.product(range(1, 5), (1, 2)):
        shape = counter.before.but({KV_HEADS: kv_heads, HEADS: kv_heads * each})
        sizes = [shape.but({MLP: neurons}) for neurons in range(1, 321)]
        if any(missed(counter, budget, counter.everywhere(widths)) < 0.005 for widths in sizes) and holds(
            config, shape
        ):
            possible.add((kv_heads, each))
    found = {(candidate.widths[KV_HEADS], heads_per_group(candidate.widths)) for candidate in listed}
    assert found == possible
    assert least <= len(found) <= most


@pytest.mark.parametrize("axes", [BLOCK, (HIDDEN, *BLOCK)])
def test_fewer_layers_are_candidates_too(axes):
    """With all channels, and what is left of the budget; the layers that go cost what they change."""
    (counter, config), (fewer, _) = (counted("llama", num_hidden_layers=number, **FINE) for number in (4, 3))
    budget, costs, stay = budget_of(counter, 0.3, False), made_up(counter, 0.1, 0.2, 0.3, 0.4), (0, 1, 3)
    listed = candidates(counter, config, axes, budget, costs, {stay: fewer})
    shallow = [candidate for candidate in listed if candidate.layers == stay]
    assert {candidate.layers for candidate in listed} == {stay, None}
    assert len(shallow) > 2
    for candidate in shallow:
        widths = candidate.widths
        assert abs(fewer.decoder(fewer.everywhere(widths)) / budget.parameters - 1) < 0.005
        assert widths[HIDDEN] == counter.before[HIDDEN]
        assert candidate.expected == pytest.approx(0.3 + sum(costs.of(layer, widths) for layer in stay))


@pytest.mark.parametrize(
    ("layers", "depths"), [(2, []), (3, [2]), (6, [5, 4]), (12, [11, 10, 9, 8]), (32, [31, 28, 25, 22])]
)
def test_depths(layers, depths):
    """Down to two thirds, at most four of them."""
    assert list(depths_of(layers)) == depths


def test_layers_that_change_least_go():
    costs = made_up(counted("llama")[0], 3.0, 1.0, 2.0, 4.0, 1.5)
    assert [cheapest_layers(costs, number) for number in (4, 3, 1)] == [(0, 2, 3, 4), (0, 2, 3), (3,)]


@pytest.mark.parametrize(("axes", "share"), [((MLP,), 0.9), ((HEADS,), 0.3), ((KV_HEADS, HEADS), 0.5)])
def test_a_budget_that_nothing_meets(axes, share):
    counter, config = counted("llama")
    budget = budget_of(counter, share, False)
    with pytest.raises(PlanError, match="meets the budget; ask for less, or `prune` more axes"):
        candidates(counter, config, axes, budget, made_up(counter))


class Measure:
    """Gives KLs in turn, each after `seconds`; `shapes`: the neurons of those it was asked for."""

    def __init__(self, monkeypatch, kls, seconds: float = 0.0) -> None:
        self.kls, self.shapes, self.now = iter(kls), [], 0.0
        self.seconds = seconds
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)

    def __call__(self, candidate: Candidate) -> float:
        self.shapes.append(candidate.widths[MLP])
        self.now += self.seconds
        return next(self.kls)


def options(count: int) -> list[Candidate]:
    """With 1, 2, … neurons."""
    return [Candidate(toys.widths(8, 2, 2, neurons, 4), float(neurons)) for neurons in range(1, count + 1)]


def neurons(found: list[Candidate]) -> list[int]:
    return [candidate.widths[MLP] for candidate in found]


def test_the_best_comes_first(monkeypatch):
    found = search(options(4), Measure(monkeypatch, [3.0, 1.0, 4.0, 2.0]), 1.0)
    assert neurons(found) == [2, 4, 1, 3]
    assert [candidate.kl for candidate in found] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(("minutes", "measured"), [(0.0, 1), (0.5, 1), (1.0, 2), (1.4, 3), (60.0, 9)])
def test_time_is_kept_and_one_is_always_measured(monkeypatch, minutes, measured):
    """40 seconds each; the last begins within the time."""
    measure = Measure(monkeypatch, range(9, 0, -1), 40.0)
    assert len(search(options(9), measure, minutes)) == len(measure.shapes) == measured


def test_patience(monkeypatch):
    """The third is the best; as many as are patience's behind it are measured."""
    measure = Measure(monkeypatch, [5.0, 4.0, 3.0, *range(4, 99)])
    assert neurons(search(options(50), measure, 60.0))[0] == 3
    assert len(measure.shapes) == 3 + PATIENCE


def test_patience_begins_when_every_hidden_size_depth_and_tie_has_been_tried(monkeypatch):
    measure, listed = Measure(monkeypatch, range(1, 99)), options(50)
    listed[:4] = [
        replace(listed[0], widths=listed[0].widths.but({HIDDEN: 16})),
        replace(listed[1], layers=(0, 2)), replace(listed[2], untied=True), listed[3],
    ]  # fmt: skip
    search(listed, measure, 60.0)
    assert len(measure.shapes) == 4 + PATIENCE


def test_a_shape_that_breaks_is_the_worst(monkeypatch):
    found = search(options(4), Measure(monkeypatch, [math.nan, 2.0, math.nan, 1.0]), 60.0)
    assert neurons(found)[:2] == [4, 2]


def test_an_interrupted_search_goes_on(monkeypatch, tmp_path):
    cache = tmp_path / "search.json"

    def kls():
        yield from (3.0, 1.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(options(4), Measure(monkeypatch, kls(), 40.0), 60.0, cache, "key")
    again = Measure(monkeypatch, [4.0, 2.0], 40.0)
    assert neurons(search(options(4), again, 60.0, cache, "key")) == [2, 4, 1, 3]
    assert again.shapes == [3, 4]
    nothing = Measure(monkeypatch, [])
    assert json.loads(cache.read_text())["seconds"] == 160
    assert neurons(search(options(4), nothing, 0.0, cache, "key")) == [2, 4, 1, 3], "what is known takes no time"


def test_a_search_that_is_over_stays_so(monkeypatch, tmp_path):
    """Time is counted on: what comes after it depends on the shape, and what is known of that should be of use."""
    cache = tmp_path / "search.json"
    found = search(options(9), Measure(monkeypatch, range(9, 0, -1), 40.0), 1.0, cache, "key")
    assert search(options(9), Measure(monkeypatch, []), 1.0, cache, "key") == found
    more = Measure(monkeypatch, [1.0, 2.0], 40.0)
    assert neurons(search(options(9), more, 2.1, cache, "key")) == [3, 4, 2, 1]


def test_one_is_measured_when_time_is_long_over(monkeypatch, tmp_path):
    """As when what was measured is not what may go now."""
    cache = tmp_path / "search.json"
    cache.write_text(json.dumps({"version": 1, "key": "key", "kl": {"another": 1.0}, "seconds": 999.0}))
    assert neurons(search(options(4), Measure(monkeypatch, [2.0]), 1.0, cache, "key")) == [1]


@pytest.mark.parametrize(
    "spoiled",
    [
        '{"version": 1, "key": "other"', "[1, 2]", '{"version": 1, "key": "key", "kl": {}}', '"key"', "", "\x00",
        '{"version": 2, "key": "key", "kl": {}, "seconds": 9999.0}', '{"key": "key", "kl": {}, "seconds": 9999.0}',
    ],
)  # fmt: skip
def test_a_cache_that_is_not_one_is_ignored(monkeypatch, tmp_path, spoiled):
    cache = tmp_path / "search.json"
    cache.write_text(spoiled)
    assert neurons(search(options(2), Measure(monkeypatch, [2.0, 1.0]), 60.0, cache, "key")) == [2, 1]
    assert json.loads(cache.read_text())["key"] == "key"


def test_a_cache_of_another_run_is_ignored(monkeypatch, tmp_path):
    cache = tmp_path / "search.json"
    search(options(2), Measure(monkeypatch, [2.0, 1.0]), 60.0, cache, "one")
    measure = Measure(monkeypatch, [1.0, 2.0])
    assert neurons(search(options(2), measure, 60.0, cache, "another")) == [1, 2]
    assert measure.shapes == [1, 2]
