"""Axes: what a model has a number of, and how that number stands in a configuration. One file for each kind.

Counting, planning, choosing and reporting loop over axes. To add an axis is to add a file here, its line in `AXES`,
the names that families have for it, and a rule for the trace.
"""

from collections.abc import Iterable

from llm_pruner.model.axes.attention import HEAD_DIM, HEADS, KV_HEADS, heads_per_group, is_grouped, with_heads
from llm_pruner.model.axes.axis import LAYER, MODEL, Axis, Layers, Widths
from llm_pruner.model.axes.depth import LAYERS
from llm_pruner.model.axes.mlp import MLP
from llm_pruner.model.axes.residual import HIDDEN

AXES = (HIDDEN, HEADS, KV_HEADS, MLP, HEAD_DIM)  # of a decoder layer, in the order in which reports list them
PRUNABLE = tuple(axis for axis in AXES if axis.prunable)

__all__ = [
    "AXES", "HEADS", "HEAD_DIM", "HIDDEN", "KV_HEADS", "LAYER", "LAYERS", "MLP", "MODEL", "PRUNABLE", "Axis", "Layers",
    "Widths", "axes_called", "heads_per_group", "is_grouped", "names_of", "with_heads",
]  # fmt: skip


def axes_called(*names: str) -> tuple[Axis, ...]:
    """Return the prunable axes of these names, such as `kv_heads`. KeyError when there is none of a name."""
    known = {axis.name: axis for axis in PRUNABLE}
    return tuple(known[name] for name in names)


def names_of(axes: Iterable[Axis]) -> str:
    """Return the names of axes for a message, in alphabetical order."""
    return ", ".join(sorted(axis.name for axis in axes))
