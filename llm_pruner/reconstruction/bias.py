"""FLAP's compensation: the mean output of the removed units becomes a bias."""

from collections.abc import Iterable, Mapping

import torch

from llm_pruner.model.axes import HIDDEN
from llm_pruner.model.groups import Group, bias_of, group_of, output_projection


@torch.no_grad()
def output_biases(
    groups: Iterable[Group],
    kept: Mapping[str, list[int]],
    parameters: Mapping[str, torch.Tensor],
    means: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Return the mean output of the removed units, for the output projections to add as a bias: W_P·x̄_P.

    W_P are the columns of the removed units, x̄_P the means of their inputs. An et al., AAAI 2024,
    https://arxiv.org/abs/2312.11983.

    Args:
        groups: The groups, heads and neurons among them.
        kept: {group name: indices of the units that stay}.
        parameters: {name: parameter} of the model.
        means: {weight of an output projection: mean of its input [columns]}.

    Returns:
        {bias of an output projection: float32 [new hidden_size]}.
    """
    groups = list(groups)
    hidden = group_of(groups, HIDDEN)
    rows = torch.tensor(kept[hidden.name])
    biases = {}
    for group in groups:
        # an attention or an MLP that goes whole has no bias either
        if group.has_output and kept[group.name]:
            member = output_projection(group)
            weight = parameters[member.parameter]
            weight = weight.T if member.dim == 0 else weight
            removed = torch.tensor(group.removed(kept[group.name]), dtype=torch.long)
            columns = member.positions(removed).to(weight.device)
            mean = means[member.parameter].to(weight.device, torch.float32)[columns]
            bias = weight.index_select(1, columns).float() @ mean
            biases[bias_of(member.parameter)] = bias[rows.to(weight.device)]
    return biases
