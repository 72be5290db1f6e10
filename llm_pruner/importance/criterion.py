"""What a criterion is: a frozen dataclass whose fields are its options, with one method that scores a group."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from llm_pruner.calibration.needs import NEEDS
from llm_pruner.calibration.statistics import Calibration, Statistics
from llm_pruner.errors import UsageError, did_you_mean, shown
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, PRUNABLE, Axis
from llm_pruner.model.groups import Group, output_projection

if TYPE_CHECKING:
    import torch

# what has a score of its own
UNIT, HEAD, COLUMN = "unit", "head", "column"
# the axes whose units are the inputs of an output projection of their layer
OUTPUT_AXES = (HEADS, KV_HEADS, MLP)


@dataclass(frozen=True)
class Criterion:
    """How much each unit of a group matters. Its options are the fields of a subclass.

    Attributes:
        name: What `--importance` calls it.
        needs: Which statistics it is computed from, of calibration.needs.NEEDS.
        axes: The axes that it is defined for.
        sequential: Whether every layer is measured behind the pruned layers before it.
        calibration: The text that it was published with.
        per: What has a score of its own: a unit, or each equal part of one (a query head, a column), which add up.
        choices: {option: its legal values}.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    axes: ClassVar[tuple[Axis, ...]] = PRUNABLE
    sequential: ClassVar[bool] = False
    calibration: ClassVar[Calibration] = Calibration()
    per: ClassVar[str] = UNIT
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}

    def __init_subclass__(cls, **named: Any) -> None:
        super().__init_subclass__(**named)
        if unknown := set(cls.needs) - set(NEEDS):
            raise ValueError(f"criterion {cls.name!r} needs {sorted(unknown)}; known: {', '.join(NEEDS)}")

    def __post_init__(self) -> None:
        for name, legal in self.choices.items():
            if getattr(self, name) not in legal:
                raise UsageError(f"{name}: {shown(getattr(self, name))}; {did_you_mean(getattr(self, name), legal)}")

    def score(self, group: Group, statistics: Statistics) -> "torch.Tensor":
        """Return a finite score for each unit of the group, or for equal parts of each, the higher the more important.

        Args:
            group: The group, in the units that are ranked.
            statistics: What the criterion needs, and perhaps more.

        Returns:
            Float tensor [units], or [units · parts].
        """
        raise NotImplementedError

    @property
    def options(self) -> dict[str, Any]:
        """The criterion's options and their values."""
        return {own.name: getattr(self, own.name) for own in fields(self)}

    def scores_of(self, group: Group) -> int:
        """Return how many scores the group gets."""
        if self.per == UNIT or group.axis not in OUTPUT_AXES:
            return group.units
        columns = output_projection(group).width
        return group.units * (columns if self.per == COLUMN else columns // min(m.width for m in group.members))
