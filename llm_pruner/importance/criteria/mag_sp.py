"""mag_sp: the magnitude of the output projections' columns alone."""

from dataclasses import dataclass

from llm_pruner.calibration.needs import WEIGHTS
from llm_pruner.importance.criterion import COLUMN, OUTPUT_AXES, Criterion
from llm_pruner.model.groups import output_projection


@dataclass(frozen=True)
class MagSp(Criterion):
    """‖W_:j‖₂ of each input column j of o_proj or down_proj, summed over a head's columns.

    The weight-only baseline of An et al., https://arxiv.org/abs/2312.11983.
    """

    name = "mag_sp"
    needs = frozenset((WEIGHTS,))
    axes = OUTPUT_AXES
    per = COLUMN

    def score(self, group, statistics):
        member = output_projection(group)
        return statistics.weights.squared_sums(member.parameter)[member.dim].sqrt()
