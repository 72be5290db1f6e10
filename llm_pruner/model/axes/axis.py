"""An axis, and the widths of a decoder layer as a mapping from axes to numbers."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_pruner.model.families import Family

MODEL, LAYER = "model", "layer"


@dataclass(frozen=True)
class Axis:
    """Something that a model has a number of.

    Attributes:
        name: What users and groups call it, such as `heads`.
        field: The standard name of the configuration's field that holds the number.
        scope: MODEL where the number is one for the whole model, LAYER where every decoder layer may have its own.
        read: Returns the number from a configuration.
        write: Sets the number in the values of a configuration, of which it gets the original too.
        prunable: Whether pruning may change the number.
    """

    name: str
    field: str
    scope: str
    read: "Callable[[Any, Family], int]"
    write: "Callable[[dict[str, Any], int, Any, Family], None]"
    prunable: bool = True

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<axis {self.name}>"

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Axis) and self.name == other.name


class Widths(Mapping[Axis, int]):
    """The widths of one decoder layer: an immutable, hashable mapping from axes to numbers."""

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Mapping[Axis, int]) -> None:
        self._numbers = dict(numbers)

    def __getitem__(self, axis: Axis) -> int:
        return self._numbers[axis]

    def __iter__(self) -> Iterator[Axis]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def __hash__(self) -> int:
        return hash(frozenset(self._numbers.items()))

    def __repr__(self) -> str:
        return f"Widths({', '.join(f'{axis}={number}' for axis, number in self.items())})"

    def but(self, changes: Mapping[Axis, int]) -> "Widths":
        """Return the widths with some of them replaced."""
        return Widths({**self._numbers, **changes})

    def by_field(self) -> dict[str, int]:
        """Return {configuration field: number}, by the standard names."""
        return {axis.field: number for axis, number in self.items()}


Layers = tuple[Widths, ...]  # of every decoder layer; axes of the whole model are the same in all
