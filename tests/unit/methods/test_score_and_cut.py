"""Score and cut: its options, which text it needs, and what it does with the scores."""

import copy

import pytest
import torch

from llm_pruner.calibration.needs import MOMENTS
from llm_pruner.errors import UsageError
from llm_pruner.importance.criteria.flap import Flap
from llm_pruner.importance.criteria.random import Random
from llm_pruner.methods import ScoreAndCut
from llm_pruner.methods.score_and_cut import Measured
from llm_pruner.model.axes import HEADS, HIDDEN, MLP
from llm_pruner.model.families import family_of, widths_of
from llm_pruner.shape.draft import draft, groups_to_score
from llm_pruner.shape.request import Budget, Ratio
from tests.support import tiny


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "magnitud"}, "unknown importance 'magnitud'; did you mean 'magnitude'"),
        ({"criterion": "flap:metrics=IFW"}, "metrics: 'IFW'; did you mean 'IFV'"),
        ({"order": "reverse"}, "order: 'reverse' must be one of standard, reversed, random"),
        ({"order": None}, "order: None must be one of standard, reversed, random"),
        ({"compensate": "biases"}, "compensate: 'biases' must be one of none, bias"),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(UsageError, match=message):
        ScoreAndCut(**options)


def test_a_name_becomes_a_criterion_with_the_methods_seed():
    assert ScoreAndCut("flap:metrics=IFV").criterion == Flap("IFV")
    assert ScoreAndCut("random", seed=3).criterion == Random(3)
    assert ScoreAndCut("random:seed=5", seed=3).criterion == Random(5)
    assert ScoreAndCut(Flap("IFV"), order="random", seed=3).scorer == Random(3)


def test_a_ratio_takes_hidden_channels_where_the_criterion_scores_them():
    before, family = widths_of(tiny.config("llama")), family_of("llama")
    axes = [
        ScoreAndCut(name).usual_axes(request, before, family)
        for name in ("magnitude", "flap")
        for request in (Ratio(0.5), Budget(param_ratio=0.5))
    ]
    assert axes == [(HIDDEN, HEADS, MLP), (HEADS, MLP), (HEADS, MLP), (HEADS, MLP)]


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({"criterion": "magnitude"}, False),
        ({"criterion": "magnitude", "compensate": "bias"}, True),
        ({"criterion": "flap"}, True),
        ({"criterion": "flap", "order": "random"}, False),
        ({"criterion": "taylor"}, True),
    ],
)
def test_text_is_asked_for_where_something_is_measured(options, needs):
    method, config = ScoreAndCut(**options), tiny.config("llama")
    made = draft(Ratio({"mlp": 0.5}), config, method)
    assert method.needs_text(made) is needs
    if not needs:
        return
    for prompts in (None, [], [torch.zeros(1, dtype=torch.long)]):
        with pytest.raises(UsageError, match="calibration needs prompts of at least two tokens"):
            method.prune(tiny.model("llama"), made, prompts)


def test_a_compensation_alone_measures_the_means():
    assert ScoreAndCut(compensate="bias").needs(scored=False) == {MOMENTS}
    assert not ScoreAndCut("taylor").needs(scored=False)


def test_a_sequential_criterion_cannot_decide_the_widths():
    budget = Budget(ratio=0.4, structure="AL-AM")
    with pytest.raises(UsageError, match="importance wanda_sp measures each layer behind the pruned ones"):
        draft(budget, tiny.config("llama"), ScoreAndCut("wanda_sp"))
    assert draft(budget, tiny.config("llama"), ScoreAndCut("wanda_sp", order="random"))


def test_reversed_ranks_the_other_way_round():
    scores = {"a": torch.tensor([1.0, -2.0])}
    assert ScoreAndCut(order="reversed").ranked(scores)["a"].tolist() == [-1.0, 2.0]
    assert ScoreAndCut().ranked(scores)["a"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize("mask_only", [True, False])
def test_the_units_of_the_highest_scores_stay(mask_only):
    """By scores that say nothing about the weights; masked, the shape stays and the rest is zero."""
    model, method = tiny.model("llama"), ScoreAndCut(mask_only=mask_only)
    made = draft(Ratio({"mlp": 0.5}), model.config, method)
    scores = {group.name: torch.arange(group.units).float() for group in groups_to_score(made)}
    dense = copy.deepcopy(model)
    plan, config = method.plan(made, Measured(scores), model)
    plan = method.with_units(plan, made, Measured(scores))
    assert plan.kept["layers.1.mlp"] == list(range(40, 80))
    assert method.with_units(plan, made, Measured()) is plan, "its units are known"
    found = method.apply(model, made, plan, config, Measured(scores))
    weight, before = (own.model.layers[1].mlp.down_proj.weight for own in (found.model, dense))
    assert torch.equal(weight[:, -40:], before[:, 40:])
    assert found.config.intermediate_size == weight.shape[1] == (80 if mask_only else 40)
    assert not mask_only or not weight[:, :40].any()
