"""What heads, neurons and whole layers cost, for shapes to be compared by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from llm_pruner.calibration.layerwise import Layer, walk
from llm_pruner.errors import computing
from llm_pruner.model.axes import KV_HEADS, MLP, Widths, heads_per_group
from llm_pruner.reconstruction.least_squares import token_weights


@dataclass(frozen=True)
class Costs:
    """What the removal of heads and neurons costs in each layer.

    The second-order cost (second_order.py) of what a layer loses, with its inputs and outputs as they are in the dense
    model: the squared error of the residual stream behind the layer that least squares could not mend, each token
    weighted as in `token_weights`; or, `scaled`, that in nats.

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
        return self.heads[layer][widths[KV_HEADS], heads_per_group(widths)] + self.of_neurons(layer, widths[MLP])

    def of_neurons(self, layer: int, kept: int) -> float:
        """Return the cost of a layer that keeps so many neurons and all heads."""
        points = self.neurons[layer]
        for (more, low), (fewer, high) in zip(points, points[1:]):
            if fewer <= kept <= more:
                return low + (high - low) * (more - kept) / (more - fewer)
        return points[0][1] if kept >= points[0][0] else points[-1][1]

    def scaled(self, heads: Sequence[float], neurons: Sequence[float]) -> "Costs":
        """Return the costs times a factor for each layer.

        Args:
            heads: Factors of the heads' costs.
            neurons: Of the neurons' costs.
        """
        return replace(
            self,
            heads=tuple(
                {shape: cost * factor for shape, cost in own.items()}
                for own, factor in zip(self.heads, heads, strict=True)
            ),
            neurons=tuple(
                tuple((kept, cost * factor) for kept, cost in own)
                for own, factor in zip(self.neurons, neurons, strict=True)
            ),
        )


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
    changes = []
    for layer in walk(model, batches, "costs", offload=True):
        layer.run()
        changes.append(change(layer) / tokens)
    return Costs((), (), tuple(changes))


def change(layer: Layer) -> float:
    """Return how much a layer changes the stream: Σ over tokens of w·‖out − in‖², with the weights of `token_weights`.

    Args:
        layer: The layer, which has been run.
    """
    total = 0.0
    for hidden, out in zip(layer.stream, layer.outputs, strict=True):
        hidden, out = hidden.to(layer.device).float(), out.to(layer.device).float()
        weights = token_weights(*(stream.square().sum(-1) for stream in (hidden, out)))
        total += ((out - hidden).square().sum(-1) * weights).sum().item()
    return total
