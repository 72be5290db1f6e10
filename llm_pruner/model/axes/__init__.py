"""Axes: what a model has a number of, and how that number stands in a configuration. One file for each kind.

Counting, planning, choosing and reporting loop over the axes of a model, which its family lists: those below if it does
not say otherwise. To add an axis is to add a file here, to list it in a family's line, and to say how it is traced.
"""

from collections.abc import Iterable

from llm_pruner.errors import UsageError, did_you_mean
from llm_pruner.model.axes.attention import (
    ATTENTION,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    MOST_HEADS,
    heads_per_group,
    is_grouped,
    uneven_heads,
    with_heads,
)
from llm_pruner.model.axes.axis import DEPTH, LAYER, MODEL, Axis, Declared, Layers, Widths
from llm_pruner.model.axes.depth import LAYERS
from llm_pruner.model.axes.mlp import MLP
from llm_pruner.model.axes.residual import HIDDEN
from llm_pruner.model.axes.vocabulary import VOCAB

# of a usual decoder, in the order in which reports list them
AXES = (HIDDEN, HEADS, KV_HEADS, MLP, HEAD_DIM, LAYERS)
PRUNABLE = tuple(axis for axis in AXES if axis.is_width and axis.prunable)
# what a decoder layer may lack, in transformers' words, and the axes of which it then has none
SKIPPED: dict[str, tuple[Axis, ...]] = {"attention": ATTENTION, "mlp": (MLP,)}

__all__ = [
    "ATTENTION", "AXES", "DEPTH", "HEADS", "HEAD_DIM", "HIDDEN", "KV_HEADS", "LAYER", "LAYERS", "MLP", "MODEL",
    "MOST_HEADS", "PRUNABLE", "SKIPPED", "VOCAB", "Axis", "Declared", "Layers", "Widths", "axis_called",
    "heads_per_group",
    "is_grouped", "names_of", "uneven_heads", "with_heads",
]  # fmt: skip


def axis_called(name: str, what: str = "axis", known: Iterable[Axis] = PRUNABLE) -> Axis:
    """Return the axis of a name, such as `kv_heads`.

    Args:
        name: Its name.
        what: What a message calls it.
        known: The axes to look among.

    Raises:
        UsageError: There is none, with a suggestion.
    """
    by_name = {axis.name: axis for axis in known}
    if name not in by_name:
        raise UsageError(f"{what} {name!r}: {did_you_mean(name, by_name)}")
    return by_name[name]


def names_of(axes: Iterable[Axis]) -> str:
    """Return the names of axes for a message, in alphabetical order."""
    return ", ".join(sorted(axis.name for axis in axes))
