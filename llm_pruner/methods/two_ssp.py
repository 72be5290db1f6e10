"""2SSP: neurons by the size of their activations, then whole attentions by the perplexity without them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from llm_pruner.calibration.activations import with_batches
from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import walk
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.console import progress
from llm_pruner.importance.selection import highest
from llm_pruner.methods.block_method import BlockMethod, lost_whole, stages_of, two_stage_outline
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.model.axes import HEADS, MLP, Layers
from llm_pruner.model.groups import Group, output_projection
from llm_pruner.model.surgery import silenced
from llm_pruner.reconstruction.ablation import whole_parts
from llm_pruner.shape.blocks import Blocks
from llm_pruner.shape.draft import Draft, Traced

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TwoSSP(BlockMethod):
    """Every MLP loses the neurons with the smallest activations, then whole attentions go, one after the other.

    The score of neuron j is the mean over the prompts of ‖X_j‖₂, the norm over a prompt's tokens of what down_proj
    reads in the dense model. Of the attentions, always the one goes without which perplexity is lowest. Nothing is
    fitted. Sandri et al., 2SSP: A Two-Stage Framework for Structured Pruning of LLMs, https://arxiv.org/abs/2501.17771.
    The published code measures perplexity on the first window, of 2,048 tokens.
    """

    perplexity_tokens: int | None = 2048

    name: ClassVar[str] = "2ssp"
    calibration: ClassVar[Calibration] = Calibration("c4", nsamples=32, seq_len=2048)

    def outlined(self, share: float, blocks: Blocks, traced: Traced) -> Layers:
        """Return the widths by 2SSP's rule; see `two_stages`."""
        return two_stage_outline(share, blocks, traced)

    def prune(
        self, model, draft: Draft, prompts: "Sequence[torch.Tensor] | None" = None, journal: Journal | None = None
    ) -> Pruned:
        """Score neurons, remove attentions and cut; see `Method.prune`."""
        journal, prompts, groups = journal or Journal(), self.checked(model, prompts, least=2), draft.traced.groups
        attentions, neurons = stages_of(draft)
        mlps = [group for group in groups if group.axis == MLP]
        with journal.timed("score"):
            scores = with_batches(model, prompts, lambda batches: mean_norms(model, batches, mlps))
        kept = {group.name: highest(scores[group.name], group.units, neurons) for group in mlps}
        parameters = dict(model.named_parameters())
        with silenced(parameters, mlps, kept), self.ablation(model, prompts, journal) as ablation:
            parts = whole_parts(model, groups, HEADS)
            for _ in progress(range(attentions), desc="attentions", unit="round"):
                left = ablation.left(parts)
                ablation.remove(left, ablation.losses_without(left))
        return self.cut(model, draft, kept | lost_whole(ablation, groups), ablation, journal)


def summed_norms(x: "torch.Tensor") -> "torch.Tensor":
    """Return Σ over prompts of ‖X_j‖₂, the norm over a prompt's tokens of what neuron j gives.

    Args:
        x: Float tensor [prompts, tokens, neurons].

    Returns:
        float64 [neurons].
    """
    return x.detach().float().norm(dim=1).double().sum(0)


def mean_norms(model, batches: "Sequence[torch.Tensor]", mlps: Sequence[Group]) -> "dict[str, torch.Tensor]":
    """Return the mean over prompts of the norm of what each neuron gives down_proj.

    Args:
        model: In evaluation mode.
        batches: LongTensors [prompts, length].
        mlps: The groups of neurons.

    Returns:
        {group name: float64 [neurons]}.

    Raises:
        RunError: Hidden states are not finite.
    """
    by_layer = {group.own_layer: group for group in mlps}
    prompts = sum(map(len, batches))
    scores: dict[str, torch.Tensor] = {}

    def add(name: str, x: "torch.Tensor") -> None:
        scores[name] = scores.get(name, 0.0) + summed_norms(x) / prompts

    for layer in walk(model, batches, offload=True):
        group = by_layer[layer.index]
        with Hooks() as hooks:
            module = model.get_submodule(output_projection(group).parameter.removesuffix(".weight"))
            hooks.on_input(module, partial(add, group.name))
            layer.run()
    return scores
