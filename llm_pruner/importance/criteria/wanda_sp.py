"""Wanda-sp: Wanda's metric for whole heads and neurons."""

from dataclasses import dataclass

from llm_pruner.calibration.needs import MOMENTS, WEIGHTS
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.importance.criterion import COLUMN, OUTPUT_AXES, Criterion
from llm_pruner.model.groups import output_projection


@dataclass(frozen=True)
class WandaSp(Criterion):
    """Mean over rows of |W_ij|·‖X_j‖₂ of each input column j of o_proj or down_proj, summed over a head's columns.

    Every layer is measured behind the pruned layers before it. The structured form of Wanda (Sun et al., ICLR 2024,
    https://arxiv.org/abs/2306.11695) that An et al. compare with, https://arxiv.org/abs/2312.11983.
    """

    name = "wanda_sp"
    needs = frozenset((WEIGHTS, MOMENTS))
    axes = OUTPUT_AXES
    sequential = True
    calibration = Calibration("c4", nsamples=128, seq_len=128)
    per = COLUMN

    def score(self, group, statistics):
        member = output_projection(group)
        inputs = statistics.inputs[member.parameter]
        return inputs.norm * statistics.weights.absolute_means(member.parameter, member.dim).to(inputs.norm)
