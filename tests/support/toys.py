"""Toys that fit in a comment: what an output projection reads, and decoders of a few units."""

import functools

import torch
from transformers import AutoConfig

from llm_pruner.calibration.activations import Inputs
from llm_pruner.calibration.needs import ABSOLUTE, CONTRIBUTION, MOMENTS
from llm_pruner.model.axes import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, MLP, Widths
from llm_pruner.model.families import widths_of
from llm_pruner.model.skeleton import meta_model
from llm_pruner.model.trace import trace_groups
from llm_pruner.shape.counter import ParameterCounter

# What the output projection reads: a prompt of one token and a prompt of three.
#   column   values       mean  variance  ‖X_j‖
#   0        1  3 1 3     2     1         √20
#   1        0  0 0 4     1     3         4
#   2        2 -2 2 -2    0     4         4
#   3        5  5 5 5     5     0         10
PROMPTS = (
    torch.tensor([[1.0, 0.0, 2.0, 5.0]]),
    torch.tensor([[3.0, 0.0, -2.0, 5.0], [1.0, 0.0, 2.0, 5.0], [3.0, 4.0, -2.0, 5.0]]),
)
# ‖W_:j‖₂²: 2 8 1 25; mean of |W_ij| over the two rows: 1 2 ½ 3½
WEIGHT = torch.tensor([[1.0, 2.0, 0.0, 3.0], [1.0, -2.0, 1.0, -4.0]])


def measured(columns: int = 4) -> Inputs:
    inputs = Inputs({MOMENTS, ABSOLUTE, CONTRIBUTION}, WEIGHT[:, :columns], heads=columns // 2)
    for prompt in PROMPTS:
        inputs.add(prompt[None, :, :columns])
    return inputs


def assert_close(found: torch.Tensor, expected: list[float]):
    torch.testing.assert_close(found.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def counter_of(config=None, **values) -> ParameterCounter:
    """Of a configuration; by default of a llama with these values."""
    config = config or AutoConfig.for_model("llama", **{"vocab_size": 16, **values})
    model = meta_model(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    return ParameterCounter(shapes, tuple(trace_groups(model)), widths_of(config), config.num_hidden_layers)


@functools.cache
def toy() -> ParameterCounter:
    """Two layers of two heads and four neurons. A neuron costs 3·4 = 12, a head 4·6·4 = 96: eight neurons.
    Everything: 2·(2·8 + 4) = 40 neurons."""
    return counter_of(
        hidden_size=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=6,
        intermediate_size=4,
        num_hidden_layers=2,
    )


@functools.cache
def hundred() -> ParameterCounter:
    """Two layers of 92 neurons of 24 parameters and two heads of 4·3·8 = 96, as much as four: 100 neurons a layer."""
    return counter_of(
        hidden_size=8,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=3,
        intermediate_size=92,
        num_hidden_layers=2,
    )


def heads_and_neurons(layers) -> list[tuple[int, int]]:
    return [(layer[HEADS], layer[MLP]) for layer in layers]


def widths(hidden: int, heads: int, kv_heads: int, mlp: int, head_dim: int) -> Widths:
    """Widths by their axes' names."""
    return Widths({HIDDEN: hidden, HEADS: heads, KV_HEADS: kv_heads, MLP: mlp, HEAD_DIM: head_dim})
