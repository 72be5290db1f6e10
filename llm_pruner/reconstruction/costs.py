"""What heads and neurons cost in every layer, measured once on the dense model, for shapes to be compared by.

The second-order cost (second_order.py) of what a layer loses, with its inputs and outputs as they are in
the dense model: the squared error of the residual stream behind the layer that least squares could not mend, each token
relative to its energy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from llm_pruner.calibration.layerwise import Layer, walk
from llm_pruner.errors import computing
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, Widths, heads_per_group
from llm_pruner.model.groups import Group
from llm_pruner.reconstruction.layers import affine, matrix, parts_of, watch
from llm_pruner.reconstruction.least_squares import Moments, least_energy, normal_equations, token_weights
from llm_pruner.reconstruction.second_order import RIDGE, Surgeon

# points of a layer's curve over its neurons
STEPS = 32


@dataclass(frozen=True)
class Costs:
    """What the removal of heads and neurons costs in each layer, relative to the energy of the residual stream.

    Attributes:
        heads: For each layer {(kv heads, query heads of each): cost}.
        neurons: For each layer [(neurons kept, cost)], most neurons first.
        layers: What each layer changes in the stream: its cost when it goes whole.
    """

    heads: tuple[dict[tuple[int, int], float], ...]
    neurons: tuple[tuple[tuple[int, float], ...], ...]
    layers: tuple[float, ...] = ()

    def of(self, layer: int, widths: Widths) -> float:
        """Return the cost of a layer; between two points of the curve, on the line.

        Args:
            layer: The number of the layer.
            widths: Its widths afterwards.
        """
        points = self.neurons[layer]
        kept = widths[MLP]
        for (more, low), (fewer, high) in zip(points, points[1:]):
            if fewer <= kept <= more:
                mlp = low + (high - low) * (more - kept) / (more - fewer)
                break
        else:
            mlp = points[0][1] if kept >= points[0][0] else points[-1][1]
        return self.heads[layer][widths[KV_HEADS], heads_per_group(widths)] + mlp


@computing("measuring the layers' costs")
@torch.no_grad()
def measure_costs(model, groups: Sequence[Group], batches: Sequence[torch.Tensor], before: Widths) -> Costs:
    """Measure the costs of heads, neurons and whole layers.

    Args:
        model: The dense model, in evaluation mode.
        groups: Its groups.
        batches: LongTensors [prompts, length].
        before: The widths of its layers.

    Returns:
        The costs.

    Raises:
        RunError: Hidden states are not finite, or memory runs out.
    """
    heads, neurons, changes = [], [], []
    tokens = sum(batch.numel() for batch in batches)
    for layer in walk(model, batches, "costs", offload=True):
        changes.append(_change(layer) / tokens)
        for part in parts_of(groups, layer.index):
            with computing(f"measuring the costs of layer {layer.index}"):
                projection = layer.module.get_submodule(part.output_projection)
                moments = Moments(projection.bias is not None)
                for batch, hidden in enumerate(layer.stream):
                    (given,), (out,), _ = watch(partial(layer.call, batch, hidden), [projection], [projection])
                    energy = layer.outputs[batch].to(layer.device).float().square().sum(-1)
                    moments.add(given, out, token_weights(energy))
                normal, right = normal_equations(moments, affine(projection), RIDGE)
                # from a weighted mean to a relative error
                share = moments.weight / tokens
                if MLP in part.groups:
                    curve = _curve(normal, right, before[MLP])
                    neurons.append(tuple((kept, cost * share) for kept, cost in curve))
                else:
                    width = matrix(projection).shape[1] // before[HEADS]
                    found = _head_costs(normal, right, before, width)
                    heads.append({shape: cost * share for shape, cost in found.items()})
    return Costs(tuple(heads), tuple(neurons), tuple(changes))


@computing("measuring the layers' costs")
@torch.no_grad()
def measure_layers(model, batches: Sequence[torch.Tensor]) -> Costs:
    """Measure the costs of whole layers only.

    Args:
        model: The dense model, in evaluation mode.
        batches: LongTensors [prompts, length].

    Returns:
        The costs, without those of heads and neurons.

    Raises:
        RunError: Hidden states are not finite, or memory runs out.
    """
    tokens = sum(batch.numel() for batch in batches)
    changes = [_change(layer) / tokens for layer in walk(model, batches, "costs", offload=True)]
    return Costs((), (), tuple(changes))


def _change(layer: Layer) -> float:
    """Runs the layer: Σ over tokens of ‖out − in‖² / ‖out‖²."""
    layer.run()
    change = 0.0
    for hidden, out in zip(layer.stream, layer.outputs, strict=True):
        hidden, out = hidden.to(layer.device), out.to(layer.device)
        energy = out.float().square().sum(-1)
        change += ((out - hidden).float().square().sum(-1) / energy.clamp_min(least_energy(energy))).sum().item()
    return change


def _curve(normal, right, units: int) -> list[tuple[int, float]]:
    surgeon, points = Surgeon(normal, right, 1, units), [(units, 0.0)]
    for step in range(STEPS):
        kept = units - (units - 1) * (step + 1) // STEPS
        if kept < len(surgeon.alive):
            surgeon.keep(kept, rounds=1)
            points.append((kept, surgeon.error))
    return points


def _head_costs(normal, right, before: Widths, width: int) -> dict[tuple[int, int], float]:
    found = {}
    per_group = heads_per_group(before)
    surgeon = Surgeon(normal, right, width * per_group, before[KV_HEADS])
    for kv_heads in range(before[KV_HEADS], 0, -1):
        surgeon.keep(kv_heads, rounds=1)
        inner = surgeon.copy()
        groups = list(inner.alive)
        inner.split(per_group)
        found[kv_heads, per_group] = inner.error
        for each in range(per_group - 1, 0, -1):
            inner.remove_one_of_each(len(groups))
            found[kv_heads, each] = inner.error
    return found
