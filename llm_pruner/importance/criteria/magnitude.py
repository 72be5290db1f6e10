"""Group magnitude: a unit matters as much as the weights that would go with it are large."""

from dataclasses import dataclass

from llm_pruner.calibration.needs import WEIGHTS
from llm_pruner.importance.criterion import Criterion


@dataclass(frozen=True)
class Magnitude(Criterion):
    """Mean over the group's members of Σ w² over the slice that belongs to the unit (no root).

    A unit several positions wide, such as a head, has the mean of its positions. Linear-like members
    count (projections, lm_head, LayerNorm weights); biases, embeddings and RMSNorm weights do not.
    Torch-Pruning's `GroupMagnitudeImportance(p=2, group_reduction="mean")`: Fang et al., DepGraph: Towards
    Any Structural Pruning, CVPR 2023, https://arxiv.org/abs/2301.12900.
    """

    name = "magnitude"
    needs = frozenset((WEIGHTS,))

    def score(self, group, statistics):
        import torch

        units = torch.arange(group.units)
        total, members = 0, 0
        for member in group.members:
            if member.role in ("linear", "layernorm"):
                sums = statistics.weights.squared_sums(member.parameter)[member.dim].cpu()
                total = total + sums[member.positions(units)].view(group.units, member.width).mean(1)
                members += 1
        return total / members
