"""Random scores: the baseline that every criterion has to beat."""

import zlib
from dataclasses import dataclass

from llm_pruner.importance.criterion import Criterion


@dataclass(frozen=True)
class Random(Criterion):
    """Uniform in [0, 1), the same for the same seed and group whatever else is scored.

    Attributes:
        seed: Of the generator.
    """

    seed: int = 0

    name = "random"

    def score(self, group, statistics):
        import torch

        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{group.name}".encode()))
        return torch.rand(group.units, generator=generator)
