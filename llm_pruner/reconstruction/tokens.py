"""Calibration text as a reconstruction uses it: batches, some of which are held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llm_pruner.calibration.activations import batches_of
from llm_pruner.errors import UsageError

# tokens of a batch
STEP = 1024
# one prompt of so many is held out
HELD = 8


@dataclass(frozen=True)
class Tokens:
    """Calibration batches.

    Attributes:
        batches: LongTensors [prompts, length], each one step of the optimisation.
        held: For each batch, whether it is held out: not fitted on, but compared on.
    """

    batches: Sequence[torch.Tensor]
    held: Sequence[bool]

    @property
    def fitted(self) -> list[torch.Tensor]:
        """The batches that are fitted on."""
        return [batch for batch, held in zip(self.batches, self.held, strict=True) if not held]

    @property
    def held_out(self) -> list[torch.Tensor]:
        """The batches that are held out."""
        return [batch for batch, held in zip(self.batches, self.held, strict=True) if held]


def split(prompts: Sequence[torch.Tensor]) -> Tokens:
    """Return batches of the prompts, one of every eight of which is held out.

    Which one of the eight is another each time, so that texts that alternate are all among those that are held out.

    Args:
        prompts: LongTensors [length].

    Raises:
        UsageError: There are fewer than two.
    """
    if len(prompts) < 2:
        raise UsageError(f"{len(prompts)} calibration window: a reconstruction needs one to fit on and one to hold out")
    out = [place % HELD == (place // HELD + 1) % HELD for place in range(len(prompts))]
    held = batches_of([prompt for prompt, own in zip(prompts, out, strict=True) if own], STEP)
    fitted = batches_of([prompt for prompt, own in zip(prompts, out, strict=True) if not own], STEP)
    return Tokens([*fitted, *held], [False] * len(fitted) + [True] * len(held))
