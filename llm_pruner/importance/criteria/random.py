"""Random scores: the baseline that every criterion has to beat."""

import zlib

from llm_pruner.importance.registry import criterion


@criterion()
def random(group, evidence):
    """Uniform in [0, 1), the same for the same seed and group whatever else is scored."""
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{evidence.seed}/{group.name}".encode()))
    return torch.rand(group.units, generator=generator)
