"""A criterion: `--importance peak`, or `--importance peak:power=2`."""

from dataclasses import dataclass

import torch

from llm_pruner import Criterion


@dataclass(frozen=True)
class Peak(Criterion):
    """The largest |w| of each unit in every matrix of its group, to the power of `power`, summed over the matrices."""

    power: float = 1.0

    name = "peak"
    needs = frozenset(("weights",))

    def score(self, group, statistics):
        units, total = torch.arange(group.units), torch.zeros(group.units)
        for member in group.members:
            if member.role == "linear":
                weight = statistics.weights.parameters[member.parameter].detach()
                peaks = weight.float().abs().movedim(member.dim, 0).flatten(1).amax(1)
                total += peaks[member.positions(units)].view(group.units, member.width).amax(1) ** self.power
        return total
