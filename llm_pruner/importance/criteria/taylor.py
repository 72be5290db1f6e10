"""Taylor: how much the loss changes, to first order, when a unit is removed."""

from llm_pruner.importance.registry import GRADIENTS, Calibration, criterion


@criterion(needs=(GRADIENTS,), options=("taylor",), calibration=Calibration("c4", nsamples=10, seq_len=64))
def taylor(group, evidence):
    """`param_first` Σ|w·∂L/∂w|, `vectorize` |Σ w·∂L/∂w|, over all weights of a unit; biases do not count.

    Ma et al., LLM-Pruner: On the Structural Pruning of Large Language Models, NeurIPS 2023,
    https://arxiv.org/abs/2305.11627.
    """
    import torch

    units = torch.arange(group.units)
    total = torch.zeros(group.units, dtype=torch.float32)
    members = {(m.parameter, m.axis, m.start): m for m in group.members}  # a tied tensor is there twice
    for member in members.values():
        if member.role != "bias":
            products = evidence.products[member.parameter]
            sums = (products.absolute if evidence.taylor == "param_first" else products.signed)[member.axis]
            total += sums[member.positions(units)].view(group.units, member.width).sum(1)
    return total.abs()
