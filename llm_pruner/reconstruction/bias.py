"""FLAP's compensation: what the removed units gave on average becomes a bias."""

from collections.abc import Iterable, Mapping

import torch

from llm_pruner.model.axes import HEADS, HIDDEN, MLP
from llm_pruner.model.groups import Group, bias_of, group_of, output_projection


@torch.no_grad()
def output_biases(
    groups: Iterable[Group],
    kept: Mapping[str, list[int]],
    parameters: Mapping[str, torch.Tensor],
    means: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """{name of o_proj's or down_proj's bias: what to add to it, W_P·x̄_P, float32 [new hidden_size]}.

    W_P: the columns of the removed units, x̄_P (`means`, by the weight's name, [columns]): the mean of their input.
    An et al., AAAI 2024, https://arxiv.org/abs/2312.11983.
    """
    groups = list(groups)
    hidden = group_of(groups, HIDDEN)
    rows = torch.tensor(kept[hidden.name])
    biases = {}
    for group in groups:
        if group.axis in (HEADS, MLP):
            member = output_projection(group)
            weight = parameters[member.parameter]
            weight = weight.T if member.dim == 0 else weight
            removed = torch.tensor(sorted(set(range(group.units)) - set(kept[group.name])), dtype=torch.long)
            columns = member.positions(removed).to(weight.device)
            mean = means[member.parameter].to(weight.device, torch.float32)[columns]
            bias = weight.index_select(1, columns).float() @ mean
            biases[bias_of(member.parameter)] = bias[rows.to(weight.device)]
    return biases
