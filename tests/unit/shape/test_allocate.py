"""Adaptive widths: standardised scores, AL-AM and AL-MM, by hand."""

import math

import pytest
import torch

from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.shape.allocate import adaptive_groups, allocate, standardised
from llm_pruner.shape.counter import ParameterCounter
from tests.support.toys import assert_close, counter_of, heads_and_neurons, hundred, toy

SCORES = {
    "layers.0.heads": torch.tensor([1.0, 3.0]),  # ∓0.7071
    "layers.1.heads": torch.tensor([1.0, 9.0, 16.0, 0.0]),  # ∓0.1999
    "layers.0.mlp": torch.tensor([1.0, 2.0, 3.0, 4.0]),  # std 1.291: -1.162 -0.387 0.387 1.162
    "layers.1.mlp": torch.tensor([0.0, 0.0, 0.0, 10.0]),  # std 5: -0.5 -0.5 -0.5 1.5
}
# The best of every layer and axis, 2·8 + 2·1 = 18, stay. Then, with the cost in neurons that has been kept:
#   layer 0 neuron 2 (19), layer 1 head 0 (27), layer 0 neuron 1 (28), layer 1 neurons 0 1 2 (29 30 31),
#   layer 0 head 0 (39), layer 0 neuron 0 (40)


def allocated(counter: ParameterCounter, share: float, structure: str, remove_heads: int = 0, scores=SCORES):
    groups = adaptive_groups(counter.groups, counter.before, (HEADS, MLP))
    return allocate(counter, groups, scores, share, structure, remove_heads)


def test_standardised():
    """Columns 1 9 16 0: mean 6.5, deviations -5.5 2.5 9.5 -6.5, squares 169 in all, by 3: std 13/√3. A head has two."""
    unit = 1.5 * math.sqrt(3) / 13
    assert_close(standardised(torch.tensor([1.0, 9.0, 16.0, 0.0]), 2), [-unit, unit])
    assert_close(standardised(torch.tensor([1.0, 3.0]), 2), [-1 / math.sqrt(2), 1 / math.sqrt(2)])
    assert_close(standardised(torch.tensor([7.0, 7.0, 7.0]), 3), [0, 0, 0])


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.25, [(1, 3), (2, 3)]),  # 30 are left: exactly
        (0.45, [(1, 2), (1, 1)]),  # 22 are left: 19 is nearer than 27
        (0.4, [(1, 2), (2, 1)]),  # 24 are left: 27 is nearer than 19
        (0.1, [(2, 3), (2, 4)]),  # 36 are left: 39 is nearer than 31
    ],
)
def test_al_am(share, expected):
    assert heads_and_neurons(allocated(toy(), share, "AL-AM")) == expected


def test_al_am_leaves_the_best_unit_of_every_layer_and_axis():
    """Of 40, 16 are left: less than the 18 that stay whatever is asked."""
    assert heads_and_neurons(allocated(toy(), 0.6, "AL-AM")) == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    ("share", "heads", "expected"),
    [
        (0.29, 1, [(1, 3), (2, 2)]),  # 11.6 go, 8 of them the lowest head: ⌊3.6⌋ neurons
        (0.35, 1, [(1, 1), (2, 1)]),  # 14 go: 6 neurons
        (0.45, 2, [(1, 3), (1, 3)]),  # 18 go: 2 neurons
        (0.05, 0, [(2, 3), (2, 3)]),  # 2 go
    ],
)
def test_al_mm(share, heads, expected):
    assert heads_and_neurons(allocated(toy(), share, "AL-MM", heads)) == expected


def test_al_mm_floor_is_of_the_ratio_that_was_written():
    """0.41·200 = 82 neurons of both layers; in binary 0.41·4800 is 1967.99…"""
    scores = {f"layers.{layer}.mlp": torch.arange(92.0) for layer in (0, 1)}
    scores |= {f"layers.{layer}.heads": torch.tensor([1.0, 2.0]) for layer in (0, 1)}
    layers = allocated(hundred(), 0.41, "AL-MM", 0, scores)
    assert sum(layer[MLP] for layer in layers) == 2 * 92 - 82


def test_adaptive_unit_of_grouped_queries_is_the_kv_group():
    """Two kv groups of two heads: q and o have 2·2·4 each, k and v 2·4: 48, as much as four neurons of 12.

    Two layers of 2·4 + 4 = 12. The best stay: 10. Groups 0 of either layer score -0.7071 and -0.1999 as above.
    At 0.25, 18 are left: 10, layer 0 neuron 2 (11), layer 1 group (15), layer 0 neuron 1, layer 1 neurons 0 and 1 (18).
    """
    counter = counter_of(
        hidden_size=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=2,
        intermediate_size=4,
        num_hidden_layers=2,
    )
    scores = {name.replace("heads", "kv_heads"): values for name, values in SCORES.items()}
    scores["layers.1.kv_heads"] = torch.tensor([1.0, 9.0, 16.0, 0.0])  # a score for each query head
    layers = allocated(counter, 0.25, "AL-AM", scores=scores)
    assert heads_and_neurons(layers) == [(2, 3), (4, 3)]
    assert [layer[KV_HEADS] for layer in layers] == [1, 2]
    # two query heads are one kv group, 4; of 24·0.25 = 6 two neurons are left to go: layer 0's first, layer 1's last
    layers = allocated(counter, 0.25, "AL-MM", 2, scores=scores)
    assert [(layer[KV_HEADS], layer[MLP]) for layer in layers] == [(1, 3), (2, 3)]
