"""One pass through the dense model, from which all shapes are compared: no model is built for a shape.

Of each layer's o_proj and down_proj the normal equations are summed, with inputs and outputs as they are in the dense
model. From these follow, for any number of units, which of them stay, what the others cost, and how the projection is
fitted to those that stay.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from llm_pruner.calibration.activations import Inputs
from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import Layer, walk
from llm_pruner.calibration.needs import MOMENTS
from llm_pruner.errors import computing
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, Widths, heads_per_group
from llm_pruner.model.groups import Group, output_projection
from llm_pruner.reconstruction.costs import Costs, change
from llm_pruner.reconstruction.layers import Part, affine, matrix, parts_of
from llm_pruner.reconstruction.least_squares import Moments, normal_equations, token_weights
from llm_pruner.reconstruction.second_order import RIDGE, Surgeon, cholesky

# points of a layer's curve over its neurons
STEPS = 32
# of all normal equations together, in bytes: those of larger models are not kept, and their costs have to do
LARGEST = 2**32


@dataclass(frozen=True)
class Regression:
    """An output projection fitted to what it gives in the dense model, and the units that it can do without.

    With its own weights W the normal equations W' A = B have B = W A, since nothing but the units that go is missing.

    Attributes:
        projection: Its name in the layer.
        normal: A, float32 [n, n].
        width: Columns of a unit.
        order: All units, the last to go first. For heads {(kv heads, query heads of each): those that stay}.
    """

    projection: str
    normal: torch.Tensor
    width: int
    order: Sequence[int] | Mapping[tuple[int, int], Sequence[int]]

    def kept(self, widths: Widths) -> list[int]:
        """Return the units that stay, ascending."""
        if isinstance(self.order, Mapping):
            return list(self.order[widths[KV_HEADS], heads_per_group(widths)])
        return sorted(self.order[: widths[MLP]])

    def weight(self, own: torch.Tensor, widths: Widths) -> torch.Tensor:
        """Return the projection, fitted to the units that stay at these widths: the others' columns are zero.

        Args:
            own: W, float32 [out, n].
            widths: Of the layer.

        Returns:
            float32 [out, n].
        """
        units = torch.tensor(self.kept(widths))
        columns = (units[:, None] * self.width + torch.arange(self.width)).flatten()
        # the intercept's, if there is one
        columns = torch.cat([columns, torch.arange(self._columns(), len(self.normal))]).to(self.normal.device)
        some = self.normal[:, columns]
        right, factor = own @ some, cholesky(some[columns].double())
        weight = torch.zeros_like(own)
        weight[:, columns] = torch.cholesky_solve(right.T.double(), factor).T.float()
        return weight

    def _columns(self) -> int:
        order = self.order
        units = max(map(max, order.values())) + 1 if isinstance(order, Mapping) else len(order)
        return units * self.width


@dataclass(frozen=True)
class Survey:
    """What one pass through the dense model tells.

    Attributes:
        costs: Of heads, neurons and layers.
        regressions: For each layer those of o_proj and down_proj; empty where they would be too large.
        inputs: {weight of an output projection: mean and variance of its input}.
    """

    costs: Costs
    regressions: list[tuple[Regression, ...]] = field(default_factory=list)
    inputs: dict[str, Inputs] = field(default_factory=dict)


@computing("measuring the layers' costs")
@torch.no_grad()
def survey(model, groups: Sequence[Group], batches: Sequence[torch.Tensor], before: Widths) -> Survey:
    """Measure what heads, neurons and whole layers cost.

    Args:
        model: The dense model, in evaluation mode.
        groups: Its groups.
        batches: LongTensors [prompts, length].
        before: The widths of its layers.

    Returns:
        The costs and what they were made of.

    Raises:
        RunError: Hidden states are not finite, or memory runs out.
    """
    heads, neurons, changes = [], [], []
    tokens = sum(batch.numel() for batch in batches)
    found = Survey(Costs((), ()))
    keeps = _bytes(groups, dict(model.named_parameters())) <= LARGEST
    for layer in walk(model, batches, "survey", offload=True):
        parts = parts_of(groups, layer.index)
        sums = _run(layer, parts)
        changes.append(change(layer) / tokens)
        regressions = []
        for part in parts:
            with computing(f"measuring the costs of layer {layer.index}"):
                moments, inputs = sums.pop(part.output_projection)
                group = part.groups[MLP if MLP in part.groups else HEADS]
                found.inputs[output_projection(group).parameter] = inputs
                projection = layer.module.get_submodule(part.output_projection)
                normal, right = normal_equations(moments, affine(projection), RIDGE)
                width = matrix(projection).shape[1] // group.units
                order: Sequence[int] | Mapping[tuple[int, int], Sequence[int]]
                # from a weighted mean to a relative error
                share = moments.weight / tokens
                if MLP in part.groups:
                    curve, order = _curve(normal, right, before[MLP])
                    neurons.append(tuple((kept, cost * share) for kept, cost in curve))
                else:
                    costs, order = _head_costs(normal, right, before, width)
                    heads.append({shape: cost * share for shape, cost in costs.items()})
                regressions.append(Regression(part.output_projection, normal.float(), width, order))
        if keeps:
            found.regressions.append(tuple(regressions))
    return Survey(Costs(tuple(heads), tuple(neurons), tuple(changes)), found.regressions, found.inputs)


def _bytes(groups: Sequence[Group], parameters: Mapping[str, torch.Tensor]) -> int:
    """Of all normal equations, in float32."""
    shapes = [
        (parameters[member.parameter].shape, member.dim)
        for group in groups
        if group.axis in (HEADS, MLP)
        for member in [output_projection(group)]
    ]
    return sum(4 * shape[dim] ** 2 for shape, dim in shapes)


def _run(layer: Layer, parts: Sequence[Part]) -> dict[str, tuple[Moments, Inputs]]:
    """Run a layer: {output projection: (moments of its input and output, statistics of its input)}."""
    modules = {part.output_projection: layer.module.get_submodule(part.output_projection) for part in parts}
    sums = {name: (Moments(module.bias is not None), Inputs({MOMENTS})) for name, module in modules.items()}
    seen: dict[tuple[str, str], torch.Tensor] = {}

    def add(hidden: torch.Tensor, output: torch.Tensor) -> None:
        weights = token_weights(*(stream.to(output.device).float().square().sum(-1) for stream in (hidden, output)))
        for name, (moments, inputs) in sums.items():
            x, y = seen.pop((name, "in")), seen.pop((name, "out"))
            moments.add(x, y, weights)
            inputs.add(x)

    with Hooks() as hooks:
        for name, module in modules.items():
            hooks.on_input(module, partial(_note, seen, (name, "in")))
            hooks.on_output(module, partial(_note, seen, (name, "out")))
        layer.run(add)
    return sums


def _note(seen: dict[tuple[str, str], torch.Tensor], key: tuple[str, str], tensor: torch.Tensor) -> None:
    seen[key] = tensor.detach()


def _curve(normal, right, units: int) -> tuple[list[tuple[int, float]], list[int]]:
    """([(units kept, cost)], all units in the order in which they stay)."""
    surgeon, points = Surgeon(normal, right, 1, units), [(units, 0.0)]
    gone: list[int] = []
    for step in range(STEPS):
        kept = units - (units - 1) * (step + 1) // STEPS
        if kept < len(surgeon.alive):
            there = surgeon.alive
            left = set(surgeon.keep(kept, rounds=1))
            gone += [unit for unit in there if unit not in left]
            points.append((kept, surgeon.error))
    return points, surgeon.alive + gone[::-1]


def _head_costs(normal, right, before: Widths, width: int):
    """({(kv heads, query heads of each): cost}, the heads that stay in each case)."""
    costs, stay = {}, {}
    per_group = heads_per_group(before)
    surgeon = Surgeon(normal, right, width * per_group, before[KV_HEADS])
    for kv_heads in range(before[KV_HEADS], 0, -1):
        surgeon.keep(kv_heads, rounds=1)
        inner = surgeon.copy()
        groups = list(inner.alive)
        inner.split(per_group)
        costs[kv_heads, per_group], stay[kv_heads, per_group] = inner.error, inner.alive
        for each in range(per_group - 1, 0, -1):
            inner.remove_one_of_each(len(groups))
            costs[kv_heads, each], stay[kv_heads, each] = inner.error, inner.alive
    return costs, stay
