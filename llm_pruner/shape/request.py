"""How much should go: one type for each way of saying it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from llm_pruner.config.limits import STRUCTURES
from llm_pruner.config.quantities import check_ratio, parse_bytes, parse_parameters
from llm_pruner.errors import UsageError
from llm_pruner.model.axes import HIDDEN, KV_HEADS, VOCAB, Axis, axis_called
from llm_pruner.model.families import known_axes
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.widths import NO_TOKENS
from llm_pruner.validation import check, maybe, one_of, truth, whole

# of a budget, beside its sizes
LEGAL = {
    "iteration": maybe(whole(1)), "structure": maybe(one_of(STRUCTURES)), "remove_heads": maybe(whole()),
    "uniform": truth,
}  # fmt: skip
Ratios = Mapping[str, float] | Mapping[Axis, float] | Mapping[Axis | str, float]
# the ways in which a budget says how much
SIZES = ("param_ratio", "params", "memory", "iteration", "ratio")


class Scorer(Protocol):
    """What shrinks a model by scores: a criterion, or a method."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The axes whose units it scores."""


@dataclass(frozen=True)
class Ratio:
    """Every axis shrinks by a share of its own, known before anything is scored.

    Attributes:
        ratios: One ratio for the method's usual axes, or {axis or its name: ratio}, each in [0, 1).
        round_to: hidden_size and intermediate_size are rounded to a multiple of this.
        axes: With one ratio, the axes that shrink by it, instead of the usual ones.

    Raises:
        UsageError: A ratio is out of range or an axis is unknown.
    """

    ratios: float | Ratios
    round_to: int = 1
    axes: tuple[Axis | str, ...] | None = None

    def __post_init__(self) -> None:
        own = self.ratios
        if isinstance(own, Mapping):
            ratios = {axis_of(name): check_ratio(ratio, f"ratio of {name}") for name, ratio in own.items()}
            object.__setattr__(self, "ratios", ratios)
        else:
            object.__setattr__(self, "ratios", check_ratio(own, "ratio"))
        _set_axes(self)
        check(vars(self), {"round_to": whole(1)}, "a ratio")

    def by_axis(self, usual: tuple[Axis, ...]) -> dict[Axis, float]:
        """Return the ratio of each axis that shrinks.

        Args:
            usual: The axes of a request that names none.
        """
        if isinstance(self.ratios, Mapping):
            return {axis_of(axis): ratio for axis, ratio in self.ratios.items()}
        return dict.fromkeys(tuple(map(axis_of, self.axes)) if self.axes else usual, self.ratios)

    @property
    def label(self) -> str:
        """The request in a few words."""
        return f"the ratio {max(self.ratios.values()) if isinstance(self.ratios, Mapping) else self.ratios:g}"


@dataclass(frozen=True)
class Target:
    """Explicit widths.

    Attributes:
        widths: {configuration field: number}, by the standard names or the model's own, or as text such as
            `hidden_size=2048,n_inner=512`; `num_hidden_layers` too, for a method that removes layers.
    """

    widths: Mapping[str, int] | str

    @property
    def text(self) -> str:
        """The widths as text."""
        if isinstance(self.widths, str):
            return self.widths
        return ",".join(f"{name}={width}" for name, width in self.widths.items())


@dataclass(frozen=True)
class Budget:
    """A number of parameters, which the method distributes over axes and layers. Exactly one of the sizes is given.

    Attributes:
        param_ratio: Share of the attention and MLP parameters that goes.
        params: Parameters of the whole model afterwards, as a number or such as `1.2B`.
        memory: Bytes of the checkpoint afterwards, as a number or such as `2GB`.
        iteration: As many parameters go as so many decoder layers have (AMP).
        ratio: FLAP's width ratio, which its structures turn into a share of the parameters.
        axes: What may shrink; by default what the method usually shrinks.
        structure: FLAP's: uniform (UL) or adaptive (AL) over layers, heads against neurons uniform (UM), manual (MM) or
            adaptive (AM). None for the same widths in every layer.
        remove_heads: Query heads that UL-MM and AL-MM remove in the whole model.
        uniform: Whether an adaptive structure is rounded to one width for all layers.

    Raises:
        UsageError: The sizes, the structure and the axes contradict each other, or a value is out of range.
    """

    param_ratio: float | None = None
    params: int | str | None = None
    memory: int | str | None = None
    iteration: int | None = None
    ratio: float | None = None
    axes: tuple[Axis | str, ...] | None = None
    structure: str | None = None
    remove_heads: int | None = None
    uniform: bool = False

    def __post_init__(self) -> None:
        given = [name for name in SIZES if getattr(self, name) is not None]
        if len(given) != 1:
            raise UsageError(f"a budget needs exactly one of {', '.join(SIZES)}; it has {', '.join(given) or 'none'}")
        for name in ("param_ratio", "ratio"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_ratio(getattr(self, name), name))
        self.parameters_left(1)
        check(vars(self), LEGAL, "a budget")
        _set_axes(self)
        self._check_structure()

    def _check_structure(self) -> None:
        structure, axes = self.structure or "", self.axes or ()
        if structure.endswith("MM") != (self.remove_heads is not None):
            raise UsageError(
                "remove_heads says how many heads UL-MM and AL-MM remove; give it with those, and only those"
            )
        if self.uniform and not structure.startswith("AL"):
            raise UsageError("uniform rounds an adaptive structure; give `structure=AL-AM` or AL-MM")
        literal = self.iteration is not None and not structure.startswith("AL")
        if axes and (structure.endswith("MM") or literal):
            what = "iteration" if literal else f"structure {structure}"
            raise UsageError(f"{what} takes both heads and neurons; with `param_ratio` `axes` may name some of them")
        if structure.startswith("UL") and KV_HEADS in axes:
            raise UsageError(
                f"structure {structure} takes query heads from every kv group; leave kv_heads out of `axes`"
            )
        if structure and HIDDEN in axes:
            raise UsageError(f"structure {structure} is about heads and neurons; leave hidden out of `axes`")

    @property
    def adaptive(self) -> bool:
        """Whether scores decide how much each layer loses."""
        return (self.structure or "").startswith("AL")

    @property
    def label(self) -> str:
        """The size in a few words."""
        name = next(name for name in SIZES if getattr(self, name) is not None)
        return f"`{name}` {getattr(self, name)}"

    def parameters_left(self, element_size: int) -> int | None:
        """Return the parameters of the whole model that are asked for; None where the size is a share.

        Args:
            element_size: Bytes of a parameter.
        """
        if self.params is not None:
            return parse_parameters(str(self.params), "params")
        return None if self.memory is None else parse_bytes(str(self.memory), "memory") // element_size


@dataclass(frozen=True)
class Replay:
    """A plan that was saved: the same units go, from a model of the same widths.

    Attributes:
        plan: The plan.
        where: What messages call it.
    """

    plan: Plan
    where: str = "the plan"


Request = Ratio | Target | Budget | Replay


def axis_of(name: Axis | str) -> Axis:
    """Return the prunable axis of a name. UsageError, with a suggestion, when there is none."""
    if str(name) == VOCAB.name:
        raise UsageError(NO_TOKENS)
    return axis_called(str(name), known=known_axes())


def check_scored(axes: Iterable[Axis], scorer: Scorer) -> None:
    """Raise a UsageError for an axis whose units a criterion, or a method, does not score.

    Args:
        axes: The axes that shrink.
        scorer: The criterion or the method.
    """
    if unscored := sorted(axis.name for axis in axes if axis not in scorer.axes):
        known = ", ".join(axis.name for axis in scorer.axes)
        raise UsageError(f"importance {scorer.name} does not score {unscored[0]}; known: {known}")


def _set_axes(request: Ratio | Budget) -> None:
    if request.axes is not None:
        axes = tuple(dict.fromkeys(map(axis_of, request.axes)))
        if not axes:
            raise UsageError(f"axes: none; choose from {', '.join(axis.name for axis in known_axes())}")
        object.__setattr__(request, "axes", axes)
