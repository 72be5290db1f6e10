"""An axis that this package does not have: one declaration, a family's line and a trace rule carry it everywhere."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from llm_pruner import Ratio, Target, prune
from llm_pruner.calibration.needs import WEIGHTS
from llm_pruner.errors import UsageError
from llm_pruner.importance import Criterion
from llm_pruner.importance.selection import choose
from llm_pruner.methods.score_and_cut import ScoreAndCut
from llm_pruner.model.axes import AXES, HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYER, MLP, MODEL, PRUNABLE, Axis, Widths
from llm_pruner.model.families import FAMILIES, family_of, widths_of
from llm_pruner.model.groups import Group, Member, group_name, read_group_name
from llm_pruner.output.page import page
from llm_pruner.shape.allocate import adaptive_groups, allocate
from llm_pruner.shape.budget import Goal, widths_by_parameters
from llm_pruner.shape.counter import ParameterCounter
from llm_pruner.shape.draft import Traced, draft
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.widths import parse_prune, parse_target, ratio_of_one_step, widths_by_ratio
from tests.support import reports, tiny

HALF = 48  # of tiny.COMMON's vocabulary


def _trace(model) -> list[Group]:
    members = (Member("model.embed_tokens.weight", 0, "embedding"), Member("lm_head.weight", 0, "linear"))
    return [Group(group_name(VOCABULARY), VOCABULARY, None, model.config.vocab_size, members)]


VOCABULARY = Axis("vocabulary", "vocab_size", MODEL, is_rounded=True, trace=_trace)


@dataclass(frozen=True)
class Largest(Criterion):
    """Rows of the embeddings by their norm."""

    name = "largest"
    needs = frozenset((WEIGHTS,))
    axes: ClassVar[tuple[Axis, ...]] = (*PRUNABLE, VOCABULARY)

    def score(self, group, statistics):
        member = group.members[0]
        return statistics.weights.squared_sums(member.parameter)[member.dim].float()


@pytest.fixture(autouse=True)
def llama_with_a_vocabulary(monkeypatch):
    family = replace(family_of("llama"), axes=(*AXES, VOCABULARY))
    get = FAMILIES.get
    monkeypatch.setattr(FAMILIES, "get", lambda name: family if name == "llama" else get(name))


@pytest.fixture
def halved():
    """(the model before, the pruned model, the plan)."""
    model = tiny.model("llama")
    return (tiny.model("llama"), *prune(model, Target({"vocab_size": HALF}), ScoreAndCut(Largest())))


def test_reading_and_naming():
    config = tiny.config("llama")
    assert widths_of(config)[VOCABULARY] == 96
    assert VOCABULARY not in widths_of(tiny.config("qwen2"))
    assert parse_target(f"vocab_size={HALF}", config) == {VOCABULARY: HALF}
    assert parse_prune("vocabulary=0.25,heads", 0.5) == {VOCABULARY: 0.25, HEADS: 0.5}
    assert read_group_name("vocabulary", widths_of(config)) == (VOCABULARY, None)
    assert Ratio(0.5, axes=("vocabulary",)).by_axis((HEADS,)) == {VOCABULARY: 0.5}


def test_cutting_counting_and_the_configuration(halved):
    dense, pruned, plan = halved
    assert pruned.config.vocab_size == HALF
    assert plan.config == {"vocab_size": HALF}
    assert plan.parameters_after == sum(p.numel() for p in pruned.parameters()) < plan.parameters_before
    assert plan.decoder_after == plan.decoder_before
    kept = torch.tensor(plan.units["vocabulary"])
    inputs = tiny.tokens() % HALF
    assert torch.allclose(tiny.logits(pruned, inputs), tiny.logits(dense, kept[inputs])[..., kept], atol=1e-5)


def test_planning_and_reporting(halved, tmp_path):
    plan = halved[2]
    assert "vocab_size" in plan.table()
    assert plan.removed()["vocab_size"] == 0.5
    assert plan.widths_after()["vocab_size"] == HALF
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.before == plan.before
    assert loaded.units == plan.units
    widths = {"before": {**reports.BEFORE, "vocab_size": 96}, "after": {**reports.AFTER, "vocab_size": HALF}}
    assert "vocab_size 96 → 48" in page([reports.pruned(widths=widths)])


def test_ratios_and_budgets():
    traced = Traced.of(tiny.config("llama"))
    counter = traced.counter
    assert widths_by_ratio(counter.before, {VOCABULARY: 0.3}, False, round_to=16)[VOCABULARY] == 64
    assert ratio_of_one_step(counter.before, [VOCABULARY]) == pytest.approx(1 / 96, abs=1e-6)
    goal = Goal(counter.total(counter.full) - 32 * 2 * traced.config.hidden_size, whole=True)
    assert widths_by_parameters(counter, [VOCABULARY], goal, lambda widths: True)[VOCABULARY] == 64


def test_a_method_that_does_not_score_it():
    with pytest.raises(UsageError, match="does not score vocabulary"):
        draft(Target({"vocab_size": HALF}), tiny.config("llama"), ScoreAndCut("magnitude"))


EXPERTS = Axis("experts", "num_experts", LAYER)
GATES = [
    Group(group_name(EXPERTS, layer), EXPERTS, layer, 4, (Member(f"layers.{layer}.gate.weight", 0, "linear"),))
    for layer in range(2)
]
BEFORE = Widths({HIDDEN: 6, HEADS: 8, KV_HEADS: 4, MLP: 5, HEAD_DIM: 2, EXPERTS: 4})
SCORES = {
    "layers.0.experts": torch.tensor([10.0, 0.0, 9.0, 8.0]),
    "layers.1.experts": torch.tensor([0.0, 0.0, 10.0, 0.0]),
}


def test_an_axis_inside_a_layer_is_named_like_any_other():
    assert [group.name for group in GATES] == ["layers.0.experts", "layers.1.experts"]
    assert read_group_name("layers.1.experts", BEFORE) == (EXPERTS, 1)
    assert read_group_name("experts", BEFORE) is None
    assert GATES[0].removed([0, 2]) == [1, 3]


def test_scores_of_all_layers_decide_about_it():
    shapes = {"layers.0.gate.weight": (4, 3), "layers.1.gate.weight": (4, 3)}
    counter = ParameterCounter(shapes, tuple(GATES), BEFORE, 2)
    assert counter.decoder(counter.full) == 24
    groups = adaptive_groups(GATES, BEFORE, [EXPERTS])
    after = allocate(counter, groups, SCORES, 0.5, "AL-AM")
    assert [layer[EXPERTS] for layer in after] == [3, 1]
    assert counter.decoder(after) == 12
    assert choose(GATES, SCORES, BEFORE, after) == {"layers.0.experts": [0, 2, 3], "layers.1.experts": [2]}
