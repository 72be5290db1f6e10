"""Putri: neurons by what the later ones cannot predict, refitted, then kv groups by the perplexity without them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from llm_pruner.calibration.activations import batches_of
from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import Layer, walk
from llm_pruner.calibration.memory import tokens_for
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.console import progress
from llm_pruner.errors import PlanError, RunError, UsageError, computing
from llm_pruner.importance.selection import highest
from llm_pruner.methods.block_method import BlockMethod, stages_of, two_stage_outline
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, Layers, heads_per_group
from llm_pruner.model.families import family_of
from llm_pruner.model.groups import Group, group_name, output_projection
from llm_pruner.reconstruction.ablation import Ablation, kv_group_parts
from llm_pruner.reconstruction.layers import affine, matrix, set_affine
from llm_pruner.reconstruction.least_squares import Moments
from llm_pruner.shape.blocks import Blocks, two_stages
from llm_pruner.shape.draft import Draft, Traced


@dataclass(frozen=True)
class Putri(BlockMethod):
    """Every MLP loses neurons and is fitted again, layer by layer; then kv groups go, as many at once as a layer has.

    A neuron's score is `neuron_scores`, on inputs that come through the pruned layers before; what stays of down_proj
    is `refitted` to what the layer's own dense down_proj makes of the same inputs, so that errors add up from layer to
    layer. In each of A rounds (see `two_stages`) perplexity is measured without every kv group that is left, and the G
    go without which it is lowest, where a dense layer has G. These are the neuron score sparsegpt_norm and the head
    score ppl_head of Putri, whose published code calibrates on 256 windows of C4 of 2,048 tokens and measures
    perplexity on the first.
    """

    perplexity_tokens: int | None = 2048

    name: ClassVar[str] = "putri"
    calibration: ClassVar[Calibration] = Calibration("c4", nsamples=256, seq_len=2048)

    def outlined(self, share: float, blocks: Blocks, traced: Traced) -> Layers:
        """Return the widths as if whole attentions went; PlanError where all layers must have the same heads."""
        model_type = traced.config.model_type
        if two_stages(blocks, share)[0] and family_of(model_type).derived_head_dim:
            raise PlanError(
                f"{model_type} derives head_dim from hidden_size / num_attention_heads, so all layers have the same "
                "heads, and putri takes kv groups of single layers; `method=2ssp` and `method=blockpruner` take whole "
                "attentions"
            )
        return two_stage_outline(share, blocks, traced)

    def prune(
        self, model, draft: Draft, prompts: Sequence[torch.Tensor] | None = None, journal: Journal | None = None
    ) -> Pruned:
        """Prune and fit the MLPs, remove kv groups and cut; see `Method.prune`."""
        journal, prompts, groups = journal or Journal(), self.checked(model, prompts, least=2), draft.traced.groups
        before = draft.traced.counter.before
        if (tokens := sum(map(len, prompts))) < before[MLP]:
            raise UsageError(
                f"method {self.name} needs at least as many calibration tokens as an MLP has neurons, {before[MLP]:,}; "
                f"there are {tokens:,}: use a larger `nsamples` or `calibration_seq_len`"
            )
        attentions, neurons = stages_of(draft)
        mlps = [group for group in groups if group.axis == MLP]
        with journal.timed("fit"):
            kept = prune_mlps(model, batches_of(prompts, tokens_for(model)), mlps, neurons)
        parameters = dict(model.named_parameters())
        with self.ablation(model, prompts, journal) as ablation:
            parts = kv_group_parts(parameters, groups)
            for _ in progress(range(attentions), desc="kv groups", unit="round"):
                left = ablation.left(parts)
                ablation.remove(left, ablation.losses_without(left), before[KV_HEADS])
        return self.cut(model, draft, kept | _heads_left(ablation, groups, heads_per_group(before)), ablation, journal)


def _heads_left(ablation: Ablation, groups: Sequence[Group], per_group: int) -> dict[str, list[int]]:
    """{group name: heads, or kv heads, that stay}."""
    gone = {(part.layer, part.unit) for part in ablation.gone}
    kept = {}
    for group in groups:
        if group.axis == KV_HEADS:
            units = [unit for unit in range(group.units) if (group.layer, unit) not in gone]
            kept[group.name] = units
            heads = [unit * per_group + head for unit in units for head in range(per_group)]
            kept[group_name(HEADS, group.layer)] = heads
    return kept


@torch.no_grad()
def prune_mlps(model, batches: Sequence[torch.Tensor], mlps: Sequence[Group], neurons: int) -> dict[str, list[int]]:
    """Choose the neurons of every layer behind the pruned ones before it, and fit down_proj to what it was.

    The columns of the others become zero. The bias of a down_proj stays as it is.

    Args:
        model: In evaluation mode; its down_proj weights change.
        batches: LongTensors [prompts, length].
        mlps: The groups of neurons.
        neurons: How many stay in each layer.

    Returns:
        {group name: neurons that stay}.

    Raises:
        RunError: Hidden states are not finite, or the text does not tell the neurons of a layer apart.
    """
    by_layer = {group.own_layer: group for group in mlps}
    kept = {}
    for layer in walk(model, batches, "neurons", offload=True):
        group = by_layer[layer.index]
        projection = model.get_submodule(output_projection(group).parameter.removesuffix(".weight"))
        with computing(f"putri: the neurons of layer {layer.index}"):
            second, energy = _moments(layer, projection)
            weight = matrix(projection).detach().to(second)
            scores = neuron_scores(second, weight, energy)
            if scores is None:
                raise RunError(
                    f"layer {layer.index}: some neurons are silent, or the same as others, on all of the calibration "
                    "text, and putri cannot rank those; use more of it, `nsamples`, or `method=2ssp`"
                )
            units = kept[group.name] = highest(scores, group.units, neurons)
            new = affine(projection)
            new[:, : group.units] = 0
            new[:, units] = refitted(second, weight, units).float()
            set_affine(projection, new)
        layer.run()
    return kept


def _moments(layer: Layer, projection) -> tuple[torch.Tensor, torch.Tensor]:
    """(H = Σ x xᵀ of what a projection reads, the mean square of each of its outputs), over the tokens of a layer."""
    moments, read = Moments(), list[torch.Tensor]()
    with Hooks() as hooks:
        hooks.on_input(projection, read.append)
        hooks.on_output(projection, lambda output: moments.add(read.pop(), output))
        layer.run()
    return moments.inputs, moments.targets / moments.weight


def neuron_scores(second: torch.Tensor, weight: torch.Tensor, energy: torch.Tensor) -> torch.Tensor | None:
    """Return Putri's score sparsegpt_norm of every neuron: s_j = r_j · Σ_i c_i·W_ij².

    r_j = 1/U_jj² with UᵀU = H⁻¹ and U upper triangular, which is H_jj − H_j,>j·H_>j,>j⁻¹·H_>j,j: what of a neuron the
    neurons behind it cannot predict. It is read from a Cholesky factor of H from its end, without an inverse.

    Args:
        second: H [n, n], Σ x xᵀ of down_proj's inputs.
        weight: W [out, n] of down_proj.
        energy: c [out], the mean square of each output.

    Returns:
        [n]; None where H is not positive definite.
    """
    factor, failed = torch.linalg.cholesky_ex(second.flip(0, 1))
    if failed:
        return None
    unpredicted = factor.diagonal().square().flip(0)
    return (energy[:, None] * weight.square()).sum(0) * unpredicted


def refitted(second: torch.Tensor, weight: torch.Tensor, kept: Sequence[int]) -> torch.Tensor:
    """Return the columns that stay, so that they give what all gave: W_K + W_P·H_PK·H_KK⁻¹, without damping.

    Args:
        second: H [n, n], Σ x xᵀ of down_proj's inputs.
        weight: W [out, n] of down_proj.
        kept: K, ascending; P are the others.

    Returns:
        [out, k].
    """
    index = torch.tensor(kept, device=second.device)
    gone = torch.ones(len(second), dtype=torch.bool, device=second.device)
    gone[index] = False
    factor = torch.linalg.cholesky(second[index][:, index])
    lost = weight[:, gone] @ second[gone][:, index]
    return weight[:, index] + torch.cholesky_solve(lost.T, factor).T
