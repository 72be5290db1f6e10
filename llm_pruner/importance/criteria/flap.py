"""FLAP: units whose output hardly fluctuates can be replaced by a bias."""

from llm_pruner.importance.registry import (
    COLUMN,
    MOMENTS,
    READ,
    WEIGHTS,
    Calibration,
    criterion,
)
from llm_pruner.model.groups import MLP, reader


@criterion(
    needs=(WEIGHTS, MOMENTS), kinds=READ, options=("metrics",),
    calibration=Calibration("wikitext2", nsamples=1024, seq_len=128), per=COLUMN,
)  # fmt: skip
def flap(group, evidence):
    """Per input column j of o_proj or down_proj, by `metrics`:

    IFV Var(X_j) · WIFV Var(X_j)·‖W_:j‖₂² · WIFN mean over rows of |W_ij|·‖X_j‖₂; the variance is the population's.
    A head's columns are squared before they are summed; a neuron is one column, as it is.
    An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024,
    https://arxiv.org/abs/2312.11983.
    """
    member = reader(group)
    inputs = evidence.inputs[member.parameter]
    if evidence.metrics == "IFV":
        columns = inputs.variance
    elif evidence.metrics == "WIFV":
        columns = inputs.variance * evidence.weights.squared_sums(member.parameter)[member.axis].to(inputs.variance)
    else:
        columns = inputs.norm * evidence.weights.absolute_means(member.parameter, member.axis).to(inputs.norm)
    return columns if group.kind == MLP else columns.square()
