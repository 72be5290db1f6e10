"""Taylor: how much the loss changes, to first order, when a unit is removed."""

from dataclasses import dataclass

from llm_pruner.calibration.needs import GRADIENTS
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.importance.criterion import Criterion


@dataclass(frozen=True)
class Taylor(Criterion):
    """Weight times gradient, over all weights of a unit; biases do not count.

    param_first: Σ|w·∂L/∂w|. vectorize: |Σ w·∂L/∂w|.
    Ma et al., LLM-Pruner: On the Structural Pruning of Large Language Models, NeurIPS 2023,
    https://arxiv.org/abs/2305.11627.

    Attributes:
        taylor: param_first or vectorize.
    """

    taylor: str = "param_first"

    name = "taylor"
    needs = frozenset((GRADIENTS,))
    calibration = Calibration("c4", nsamples=10, seq_len=64)
    choices = {"taylor": ("param_first", "vectorize")}

    def score(self, group, statistics):
        import torch

        units = torch.arange(group.units)
        total = torch.zeros(group.units, dtype=torch.float32)
        # a tied tensor is there twice
        members = {(m.parameter, m.dim, m.start): m for m in group.members}
        for member in members.values():
            if member.role != "bias":
                products = statistics.products[member.parameter]
                sums = (products.absolute if self.taylor == "param_first" else products.signed)[member.dim]
                total += sums[member.positions(units)].view(group.units, member.width).sum(1)
        return total.abs()
