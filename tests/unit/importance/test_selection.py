"""What goes with a unit, and which units stay."""

import pytest
import torch

from llm_pruner.importance.selection import choose
from llm_pruner.methods import ScoreAndCut
from llm_pruner.model.axes import HEADS, MLP
from llm_pruner.model.groups import units_of
from tests.support.toys import counter_of


def chosen(scores: dict[str, torch.Tensor], fewer: dict, order: str = "standard") -> dict[str, list[int]]:
    case = {"hidden_size": 4, "num_attention_heads": 4, "head_dim": 2, "intermediate_size": 3, "num_hidden_layers": 1}
    counter = counter_of(**case, num_key_value_heads=2)
    ranked = ScoreAndCut(order=order).ranked(scores)
    return choose(counter.groups, ranked, counter.before, (counter.before.but(fewer),))


@pytest.mark.parametrize(("order", "neurons", "heads"), [("standard", [0, 2], [0, 3]), ("reversed", [1, 2], [1, 2])])
def test_standard_removes_the_lowest_and_reversed_the_highest(order, neurons, heads):
    """Heads 3 1 | 0 2, in columns of 2 1 | 0 1 | -1 1 | 5 -3: one of each kv group goes."""
    scores = {
        "layers.0.mlp": torch.tensor([3.0, 1.0, 2.0]),
        "layers.0.heads": torch.tensor([2.0, 1.0, 0.0, 1.0, -1.0, 1.0, 5.0, -3.0]),
    }
    kept = chosen(scores, {HEADS: 2, MLP: 2}, order)
    assert kept["layers.0.mlp"] == neurons
    assert kept["layers.0.heads"] == heads
    assert kept["layers.0.kv_heads"] == [0, 1]


def test_units_of_grouped_queries():
    """A kv group takes its query heads along, a query head leaves keys and values alone."""
    counter = counter_of(
        hidden_size=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2,
        intermediate_size=3,
        num_hidden_layers=1,
    )
    found = {
        group.name: {member.parameter.split(".")[-2]: member.width for member in group.members}
        for group in units_of(counter.groups)
        if group.layer == 0
    }
    assert found["layers.0.heads"] == {"q_proj": 2, "o_proj": 2}
    assert found["layers.0.kv_heads"] == {"q_proj": 4, "o_proj": 4, "k_proj": 2, "v_proj": 2}
    assert found["layers.0.mlp"] == {"gate_proj": 1, "up_proj": 1, "down_proj": 1}
