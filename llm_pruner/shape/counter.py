"""The parameter counter: how many parameters a model has when its layers have other widths."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llm_pruner.model.axes import Axis, Layers, Widths
from llm_pruner.model.groups import Group, prunable, shapes_after


@dataclass(frozen=True)
class ParameterCounter:
    """Counts the parameters of a model whose layers have other widths.

    Attributes:
        shapes: {parameter: shape} of the model, tied parameters once.
        groups: The model's groups.
        before: The widths of every layer.
        num_layers: How many decoder layers the model has.
    """

    shapes: Mapping[str, tuple[int, ...]]
    groups: tuple[Group, ...]
    before: Widths
    num_layers: int

    @property
    def full(self) -> Layers:
        """The widths of the model as it is."""
        return self.everywhere(self.before)

    def everywhere(self, widths: Widths) -> Layers:
        """Return the widths of a model that has `widths` in every layer."""
        return (widths,) * self.num_layers

    def total(self, after: Layers) -> float:
        """Return the parameters of the whole model. Widths may be fractions."""
        return sum(math.prod(shape) for shape in shapes_after(self.shapes, self.groups, after).values())

    def decoder(self, after: Layers) -> float:
        """Return the parameters of attention and MLP, i.e. of all tensors that heads or neurons run through."""
        shapes = shapes_after(self.shapes, self.groups, after)
        return sum(math.prod(shapes[name]) for name in prunable(self.groups) if name in shapes)

    def cost(self, base: Widths, fewer: Mapping[Axis, int]) -> float:
        """Return the attention and MLP parameters that go when one layer has fewer units.

        Args:
            base: The widths of every layer.
            fewer: {axis: how many units fewer} in one of them.
        """
        smaller = base.but({axis: base[axis] - number for axis, number in fewer.items()})
        rest = self.everywhere(base)[1:]
        return self.decoder((base, *rest)) - self.decoder((smaller, *rest))

    def of_layer_0(self) -> int:
        """Return all parameters of the first decoder layer, norms included."""
        inside = next(m.parameter for g in self.groups if g.layer == 0 for m in g.members)
        prefix = "".join(inside.partition(".0.")[:2])
        return sum(math.prod(shape) for name, shape in self.shapes.items() if name.startswith(prefix))
