"""What plain FLAP, or magnitude where hidden channels go, would do at the same shape: a rebuild must not be worse."""

import contextlib
import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from llm_pruner import importance
from llm_pruner.calibration.activations import collect
from llm_pruner.calibration.layerwise import Layer, computing, walk
from llm_pruner.calibration.weights import Weights
from llm_pruner.errors import RunError
from llm_pruner.importance import MOMENTS, Evidence
from llm_pruner.importance.selection import choose, scored_groups
from llm_pruner.model.groups import HEADS, HIDDEN, MLP, Group, reader
from llm_pruner.reconstruction.bias import output_biases
from llm_pruner.reconstruction.layers import inside, layer_number
from llm_pruner.reconstruction.logits import divergence
from llm_pruner.reconstruction.reconstruct import Tokens
from llm_pruner.shape.plan import Plan, bias_of


@computing("the plain method, for comparison,")
@torch.no_grad()
def baseline(
    model, groups: Sequence[Group], plan: Plan, tokens: Tokens, dense_stream, layers: Sequence[int] | None = None
) -> tuple[str, dict, dict, float]:
    """(importance, kept units, means for its biases, KL) of the plain method at the plan's widths. The KL is infinite
    where the method fails on what is not finite.

    layers: those that stay, by default all. dense_stream: the dense model's last hidden states, for each
    batch of `tokens`. KL: see `divergence`.
    """
    weights = Weights(dict(model.named_parameters()))
    rotated = plan.after[0].hidden_size != plan.before.hidden_size
    name = "magnitude" if rotated else "flap"
    means: dict[str, torch.Tensor] = {}
    kept: dict[str, list[int]] = {}
    evidence = Evidence(weights)
    try:
        if not rotated:
            fitted = [batch for batch, held in zip(tokens.batches, tokens.held, strict=True) if not held]
            inputs = collect(model, fitted, groups, (MOMENTS,))
            means = {weight: found.mean.cpu() for weight, found in inputs.items()}
            evidence = Evidence(weights, inputs=inputs)
        scores = importance.score(scored_groups(groups, plan.before, plan.after), importance.get(name), evidence)
        kept = choose(groups, scores, plan.before, plan.after)
        stream = _silent_stream(model, groups, replace(plan, kept=kept), means, tokens, layers)
    except RunError:  # no reason to lose the rebuild
        return name, kept, means, math.inf
    return name, kept, means, divergence(model, model, tokens, dense_stream, stream)


def _silent_stream(
    model, groups, plan: Plan, means, tokens: Tokens, layers: Sequence[int] | None
) -> list[torch.Tensor | None]:
    """The last hidden states of the held-out batches when the other units are silent; None for the fitted ones."""
    held = [batch for batch, out in zip(tokens.batches, tokens.held, strict=True) if out]
    parameters, kept = dict(model.named_parameters()), plan.kept
    hidden = next(group for group in groups if group.kind == HIDDEN)
    gone = torch.tensor(sorted(set(range(hidden.units)) - set(kept[hidden.name])), dtype=torch.long)
    whole = {**kept, hidden.name: list(range(hidden.units))}
    biases = output_biases(groups, replace(plan, kept=whole), parameters, means) if means else {}
    for layer in walk(model, held, "guard", aside=True):
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
            removed = torch.tensor(sorted(set(range(group.units)) - set(kept[group.name])), dtype=torch.long)
            for member in group.members if len(removed) else ():
                outside = group.layer is None and layer_number(member.parameter) != layer.index
                if not outside and member.role != "rmsnorm":
                    tensor = own[inside(member.parameter)]
                    tensor.data.index_fill_(member.axis, member.positions(removed).to(tensor.device), 0)
        with contextlib.ExitStack() as hooks:
            for group in groups:
                if biases and group.layer == layer.index and group.kind in (HEADS, MLP):
                    weight = reader(group).parameter
                    bias = biases[bias_of(weight)]
                    projection = module.get_submodule(inside(weight).removesuffix(".weight"))
                    hooks.callback(projection.register_forward_hook(_adding(bias)).remove)
            Layer.run(silent := Layer(layer.index, module, layer.stream, layer.arguments, aside=True))
        layer.outputs = silent.outputs
    last = iter(layer.outputs)
    return [next(last) if out else None for out in tokens.held]


def _adding(bias: torch.Tensor):
    return lambda _, __, output: output + bias.to(output)
