"""The widths that an evaluation reports of a checkpoint."""

import pytest

from llm_pruner.evaluation.run import widths
from tests.support import tiny, widths_per_layer


@pytest.mark.parametrize("case", ["llama", "gpt2"])
def test_a_layer_without_a_part_has_no_units_of_it(case):
    found = widths(widths_per_layer.skipping(case))
    stock = widths(tiny.config(case))
    heads, neurons = stock["num_attention_heads"], stock["intermediate_size"]
    assert found["num_attention_heads"] == [0, heads, 0]
    assert found["num_key_value_heads"] == [0, stock["num_key_value_heads"], 0]
    assert found["intermediate_size"] == [neurons, 0, 0]
    assert found["hidden_size"] == stock["hidden_size"]
