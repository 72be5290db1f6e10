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


def split(prompts: Sequence[torch.Tensor]) -> Tokens:
    """Return batches of the prompts, every eighth of which is held out. UsageError for fewer than two."""
    if len(prompts) < 2:
        raise UsageError(f"{len(prompts)} calibration window: a reconstruction needs one to fit on and one to hold out")
    held = batches_of([prompt for place, prompt in enumerate(prompts) if place % HELD == 1], STEP)
    fitted = batches_of([prompt for place, prompt in enumerate(prompts) if place % HELD != 1], STEP)
    return Tokens([*fitted, *held], [False] * len(fitted) + [True] * len(held))
