"""AMP: what a head adds to the residual stream, and how active a neuron is."""

from llm_pruner.importance.registry import (
    ABSOLUTE,
    CONTRIBUTION,
    HEAD,
    READ,
    Calibration,
    criterion,
)
from llm_pruner.model.groups import MLP, reader


@criterion(
    needs=(ABSOLUTE, CONTRIBUTION), kinds=READ, calibration=Calibration("alpaca", nsamples=50, seq_len=512), per=HEAD
)
def amp(group, evidence):
    """Head h: mean over tokens of ‖X_h W_hᵀ‖₁; neuron j: mean over tokens of |X_j|.

    X is what o_proj or down_proj reads, the L1 norm runs over the hidden dimension, and the mean is first taken
    over each prompt's tokens, then over prompts. A kv group has the sum of its heads.
    Mugnaini et al., Efficient LLMs with AMP: Attention Heads and MLP Pruning, 2025, https://arxiv.org/abs/2504.21174.
    """
    inputs = evidence.inputs[reader(group).parameter]
    return inputs.absolute if group.kind == MLP else inputs.contribution
