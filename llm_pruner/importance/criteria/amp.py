"""AMP: what a head adds to the residual stream, and how active a neuron is."""

from dataclasses import dataclass

from llm_pruner.calibration.needs import ABSOLUTE, CONTRIBUTION
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.importance.criterion import HEAD, OUTPUT_AXES, Criterion
from llm_pruner.model.axes import MLP
from llm_pruner.model.groups import output_projection


@dataclass(frozen=True)
class Amp(Criterion):
    """Head h: mean over tokens of ‖X_h W_hᵀ‖₁; neuron j: mean over tokens of |X_j|.

    X is the input of o_proj or down_proj, the L1 norm runs over the hidden dimension, and the mean is first taken
    over each prompt's tokens, then over prompts. A kv group has the sum of its heads.
    Mugnaini et al., Efficient LLMs with AMP: Attention Heads and MLP Pruning, 2025, https://arxiv.org/abs/2504.21174.
    """

    name = "amp"
    needs = frozenset((ABSOLUTE, CONTRIBUTION))
    axes = OUTPUT_AXES
    calibration = Calibration("alpaca", nsamples=50, seq_len=512)
    per = HEAD

    def score(self, group, statistics):
        inputs = statistics.inputs[output_projection(group).parameter]
        return inputs.absolute if group.axis == MLP else inputs.contribution
