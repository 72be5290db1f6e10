"""Calibration text as a reconstruction uses it: batches, some of which are held out."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llm_pruner.calibration.activations import batches_of
from llm_pruner.errors import UsageError

# tokens of a batch
STEP = 1024
# one prompt of so many is held out: of each run of them, in turn, the one at this place. So two to five texts that
# alternate are all held out about alike.
HELD, PLACES = 8, (0, 3, 6, 1)
# batches that go into the same half
RUN = 4


@dataclass(frozen=True)
class Tokens:
    """Calibration batches.

    Where less will do, the first are taken: of several texts any few prompts in a row are of all of them (mixtures.py),
    and every second, or every fourth, could be of one.

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
    def held_places(self) -> list[int]:
        """The numbers of the batches that are held out, ascending."""
        return [place for place, held in enumerate(self.held) if held]

    @property
    def fitted_places(self) -> list[int]:
        """The numbers of the batches that are fitted on, ascending."""
        return [place for place, held in enumerate(self.held) if not held]

    @property
    def fitted_size(self) -> int:
        """Tokens that are fitted on."""
        return sum(batch.numel() for batch in self.fitted)

    def some(self, tokens: int) -> list[torch.Tensor]:
        """Return the first batches that are fitted on, of about so many tokens."""
        return self.at(self.places(tokens)).fitted

    def places(self, tokens: float) -> list[int]:
        """Return the numbers of all batches that are held out, and of those that `some` returns, ascending."""
        fitted = self.fitted_places
        return sorted([*self.held_places, *fitted[: max(1, round(tokens * len(fitted) / self.fitted_size))]])

    def halves(self) -> tuple[list[int], list[int]]:
        """Return the numbers of all batches but half of those that are fitted on, and the numbers of that half.

        They take turns RUN by RUN.
        """
        other = [place for number, place in enumerate(self.fitted_places) if number // RUN % 2]
        return sorted(set(range(len(self.held))) - set(other)), other

    def at(self, places: Sequence[int]) -> "Tokens":
        """Return the batches of some numbers.

        Args:
            places: Their numbers.
        """
        return Tokens([self.batches[place] for place in places], [self.held[place] for place in places])

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
    out = [place % HELD == PLACES[place // HELD % len(PLACES)] for place in range(len(prompts))]
    held = batches_of([prompt for prompt, own in zip(prompts, out, strict=True) if own], STEP)
    fitted = batches_of([prompt for prompt, own in zip(prompts, out, strict=True) if not own], STEP)
    return Tokens([*fitted, *held], [False] * len(fitted) + [True] * len(held))
