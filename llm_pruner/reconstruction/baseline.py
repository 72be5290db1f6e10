"""The baseline: what plain FLAP, or magnitude where hidden channels go, would do at the same shape.

A reconstruction must not be worse.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from llm_pruner.calibration.activations import Inputs, collect
from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import Layer, walk
from llm_pruner.calibration.needs import MOMENTS
from llm_pruner.calibration.statistics import Statistics
from llm_pruner.calibration.weights import Weights
from llm_pruner.errors import RunError, computing
from llm_pruner.importance import criterion_of, score
from llm_pruner.importance.selection import choose, scored_groups
from llm_pruner.model.axes import HIDDEN, Layers
from llm_pruner.model.families import widths_of
from llm_pruner.model.groups import Group, bias_of, group_of, output_projection
from llm_pruner.model.layers import inside, layer_number
from llm_pruner.reconstruction.bias import output_biases
from llm_pruner.reconstruction.logits import divergence
from llm_pruner.reconstruction.tokens import Tokens


@dataclass
class Baseline:
    """The plain method at a shape.

    Attributes:
        criterion: Its name.
        kept: {group name: units that stay}.
        means: {weight of an output projection: mean of its input}, for the biases that compensate; empty without.
        kl: KL(dense ‖ pruned), see `divergence`; infinite where the method fails on what is not finite.
    """

    criterion: str
    kept: dict[str, list[int]] = field(default_factory=dict)
    means: dict[str, torch.Tensor] = field(default_factory=dict)
    kl: float = math.inf


@computing("the plain method, for comparison,")
@torch.no_grad()
def baseline(
    model,
    groups: Sequence[Group],
    after: Layers,
    tokens: Tokens,
    dense_stream: Sequence[torch.Tensor],
    layers: Sequence[int] | None = None,
    inputs: Mapping[str, Inputs] | None = None,
) -> Baseline:
    """Measure the plain method.

    Args:
        model: The dense model.
        groups: Its groups.
        after: The widths of all its layers.
        tokens: Calibration batches.
        dense_stream: The dense model's last hidden states, for each batch.
        layers: Those that stay, by default all.
        inputs: {weight of an output projection: mean and variance of its input}, where they are known.
    """
    weights, before = Weights(dict(model.named_parameters())), widths_of(model.config)
    rotated = after[0][HIDDEN] != before[HIDDEN]
    plain = Baseline("magnitude" if rotated else "flap")
    statistics = Statistics(weights)
    try:
        if not rotated:
            inputs = inputs or collect(model, tokens.fitted, groups, (MOMENTS,))
            plain.means = {weight: found.mean.cpu() for weight, found in inputs.items()}
            statistics = Statistics(weights, inputs=inputs)
        scores = score(scored_groups(groups, before, after), criterion_of(plain.criterion), statistics)
        plain.kept = choose(groups, scores, before, after)
        stream = _silent_stream(model, groups, plain.kept, plain.means, tokens, layers)
    except RunError:
        # no reason to lose the reconstruction
        return plain
    plain.kl = divergence(model, model, tokens, dense_stream, stream)
    return plain


def _silent_stream(
    model, groups: Sequence[Group], kept, means, tokens: Tokens, layers: Sequence[int] | None
) -> list[torch.Tensor | None]:
    """The last hidden states of the held-out batches when the other units are silent; None for the fitted ones."""
    held = [batch for batch, out in zip(tokens.batches, tokens.held, strict=True) if out]
    hidden = group_of(groups, HIDDEN)
    gone = torch.tensor(hidden.removed(kept[hidden.name]), dtype=torch.long)
    whole = {**kept, hidden.name: list(range(hidden.units))}
    biases = output_biases(groups, whole, dict(model.named_parameters()), means) if means else {}
    for layer in walk(model, held, "baseline", offload=True):
        if layer.index == 0:
            layer.stream[:] = [tensor.index_fill(-1, gone.to(tensor.device), 0) for tensor in layer.stream]
        if layers is not None and layer.index not in layers:
            layer.outputs = layer.stream
            continue
        module = copy.deepcopy(layer.module)
        own = dict(module.named_parameters())
        for group in groups:
            if group.layer not in (None, layer.index):
                continue
            removed = torch.tensor(group.removed(kept[group.name]), dtype=torch.long)
            for member in group.members if len(removed) else ():
                outside = group.layer is None and layer_number(member.parameter) != layer.index
                if not outside and member.role != "rmsnorm":
                    tensor = own[inside(member.parameter)]
                    tensor.data.index_fill_(member.dim, member.positions(removed).to(tensor.device), 0)
        with Hooks() as hooks:
            for group in groups:
                if biases and group.layer == layer.index and group.has_output:
                    weight = output_projection(group).parameter
                    bias = biases[bias_of(weight)]
                    projection = module.get_submodule(inside(weight).removesuffix(".weight"))
                    hooks.on_output(projection, partial(_plus, bias))
            Layer.run(silent := Layer(layer.index, module, layer.stream, layer.arguments, offload=True))
        layer.outputs = silent.outputs
    last = iter(layer.outputs)
    return [next(last) if out else None for out in tokens.held]


def _plus(bias: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return output + bias.to(output)
