"""An axis, and the widths of a decoder layer as a mapping from axes to numbers."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from llm_pruner.config.limits import MOST_WIDTH
from llm_pruner.validation import Rule, maybe, whole

DEPTH, MODEL, LAYER = "depth", "model", "layer"


class Declared(Protocol):
    """What axes ask of a family."""

    @property
    def derived_head_dim(self) -> bool:
        """Whether the class computes head_dim as hidden_size / num_attention_heads."""

    @property
    def fields(self) -> Mapping[str, str]:
        """{standard name of a configuration's field: the family's own name}, where that differs."""


@dataclass(frozen=True)
class Axis:
    """Something that a model has a number of.

    Attributes:
        name: What users and groups call it, such as `heads`.
        field: The standard name of the configuration's field that holds the number.
        scope: DEPTH where it counts the decoder layers, MODEL where the number is one for the whole model, LAYER where
            every decoder layer may have its own.
        reads: Returns the number from a configuration; by default what the field holds.
        writes: Sets the number in the values of a configuration, of which it gets the original too; by default in the
            field.
        prunable: Whether pruning may change the number.
        most: Beyond this the number is a mistake.
        also: Other fields that hold the number, in some configurations.
        optional: Those of the fields that may be null.
        is_rounded: Whether the number is a size of matrices, which may have to be a multiple of something.
        heading: What tables call it; by default its name.
        trace: Returns the axis' groups of a model; None where the dependency graph finds them (see trace.py).
    """

    name: str
    field: str
    scope: str
    reads: Callable[[Any, Declared], int] | None = None
    writes: Callable[[dict[str, Any], int, Any, Declared], None] | None = None
    prunable: bool = True
    most: int = MOST_WIDTH
    also: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    is_rounded: bool = False
    heading: str = ""
    trace: Callable[[Any], Iterable[Any]] | None = None

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.heading or self.name.replace("_", " ")

    @property
    def is_width(self) -> bool:
        """Whether a decoder layer has this number of something."""
        return self.scope != DEPTH

    @property
    def rules(self) -> dict[str, Rule]:
        """{field of a configuration that may hold the number: what it may hold}."""
        legal = whole(1, self.most)
        return {name: maybe(legal) if name in self.optional else legal for name in (self.field, *self.also)}

    def field_of(self, family: Declared) -> str:
        """Return the name of the field in the configurations of a family."""
        return family.fields.get(self.field, self.field)

    def read(self, config: Any, family: Declared) -> int:
        """Return the number that a configuration of a family says."""
        return self.reads(config, family) if self.reads else getattr(config, self.field_of(family))

    def write(self, values: dict[str, Any], number: int, config: Any, family: Declared) -> None:
        """Set the number in values of a configuration.

        Args:
            values: What to change.
            number: The number.
            config: The configuration as it was.
            family: Its family.
        """
        if self.writes:
            self.writes(values, number, config, family)
        else:
            values[self.field_of(family)] = number

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

    @property
    def prunable(self) -> tuple[Axis, ...]:
        """The axes that pruning may change."""
        return tuple(axis for axis in self if axis.prunable)

    def but(self, changes: Mapping[Axis, int]) -> "Widths":
        """Return the widths with some of them replaced."""
        return Widths({**self._numbers, **changes})

    def common(self, other: "Widths") -> "Widths":
        """Return the widths with another layer's numbers of what is one for the whole model."""
        return self.but({axis: other[axis] for axis in self if axis.scope == MODEL})

    def by_field(self) -> dict[str, int]:
        """Return {configuration field: number}, by the standard names."""
        return {axis.field: number for axis, number in self.items()}


# of every decoder layer; axes of the whole model are the same in all
Layers = tuple[Widths, ...]
