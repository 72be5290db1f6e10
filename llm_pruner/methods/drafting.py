"""What the methods have in common that say by a rule of their own how much goes where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_pruner.calibration.statistics import Calibration
from llm_pruner.calibration.weights import Weights
from llm_pruner.config.limits import MOST_SEED
from llm_pruner.errors import UsageError
from llm_pruner.model.axes import Axis, Widths
from llm_pruner.model.families import Family
from llm_pruner.shape.draft import Draft, Replayed
from llm_pruner.shape.request import Request
from llm_pruner.validation import Rule, check, whole

if TYPE_CHECKING:
    import torch

LEGAL: dict[str, Rule] = {"seed": whole(0, MOST_SEED)}


@dataclass(frozen=True)
class DraftingMethod:
    """A method with a draft of its own, which is measured on calibration text and replays no plan.

    Attributes:
        seed: Of the draw of the text, and written to the plan; nothing else is random.

    Raises:
        UsageError: A value is out of range, or of another type.
    """

    seed: int = 0

    name: ClassVar[str]
    axes: ClassVar[tuple[Axis, ...]]
    searches: ClassVar[bool] = False
    removes_layers: ClassVar[bool] = False
    calibration: ClassVar[Calibration]
    legal: ClassVar[Mapping[str, Rule]] = LEGAL

    def __post_init__(self) -> None:
        check(vars(self), self.legal, f"method {self.name}")

    def usual_axes(self, request: Request, before: Widths, family: Family) -> tuple[Axis, ...]:
        """Return all axes of the method: how much of each goes, its rule says."""
        return self.axes

    def check(self, draft: Draft) -> None:
        """Raise a UsageError for a plan to replay."""
        if isinstance(draft.shape, Replayed):
            raise UsageError(
                f"method {self.name} makes a plan of its own; replay one by `ScoreAndCut`, without a method"
            )

    def needs_text(self, draft: Draft) -> bool:
        """Return True: what goes is measured on calibration prompts."""
        return True

    def checked(self, model, prompts: "Sequence[torch.Tensor] | None", least: int = 1) -> "list[torch.Tensor]":
        """Return the prompts that are long enough.

        Args:
            model: The dense model.
            prompts: LongTensors [length] of calibration text.
            least: How many tokens a prompt has at least.

        Raises:
            UsageError: There are none.
            RunError: The model's weights are not finite.
        """
        prompts = [prompt for prompt in prompts or () if len(prompt) >= least]
        if not prompts:
            length = f" of at least {least} tokens" if least > 1 else ""
            raise UsageError(f"method {self.name} needs calibration prompts{length}")
        Weights(dict(model.named_parameters())).check_all_finite()
        return prompts
