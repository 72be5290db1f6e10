"""mag_sp: the magnitude of the output projections' columns alone."""

from llm_pruner.importance.registry import COLUMN, READ, WEIGHTS, criterion
from llm_pruner.model.groups import reader


@criterion(needs=(WEIGHTS,), kinds=READ, per=COLUMN)
def mag_sp(group, evidence):
    """‖W_:j‖₂ per input column j of o_proj or down_proj, summed over a head's columns.

    The weight-only baseline of An et al., https://arxiv.org/abs/2312.11983.
    """
    member = reader(group)
    return evidence.weights.squared_sums(member.parameter)[member.axis].sqrt()
