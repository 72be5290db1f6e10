"""Wanda-sp: Wanda's metric for whole heads and neurons."""

from llm_pruner.importance.registry import (
    COLUMN,
    MOMENTS,
    READ,
    WEIGHTS,
    Calibration,
    criterion,
)
from llm_pruner.model.groups import reader


@criterion(
    needs=(WEIGHTS, MOMENTS), kinds=READ, sequential=True, calibration=Calibration("c4", nsamples=128, seq_len=128),
    per=COLUMN,
)  # fmt: skip
def wanda_sp(group, evidence):
    """Mean over rows of |W_ij|·‖X_j‖₂ per input column j of o_proj or down_proj, summed over a head's columns.

    Every layer is measured behind the pruned layers before it. The structured form of Wanda (Sun et al., ICLR 2024,
    https://arxiv.org/abs/2306.11695) that An et al. compare with, https://arxiv.org/abs/2312.11983.
    """
    member = reader(group)
    inputs = evidence.inputs[member.parameter]
    return inputs.norm * evidence.weights.absolute_means(member.parameter, member.axis).to(inputs.norm)
