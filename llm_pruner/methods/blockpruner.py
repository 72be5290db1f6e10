"""BlockPruner: whole attentions and whole MLPs, by the perplexity without them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llm_pruner.calibration.statistics import Calibration
from llm_pruner.console import progress
from llm_pruner.errors import PlanError
from llm_pruner.methods.block_method import LEGAL, BlockMethod, lost_whole
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.model.axes import HEADS, MLP, Layers
from llm_pruner.reconstruction.ablation import Ablation, Part, whole_parts
from llm_pruner.shape.blocks import Blocks, without
from llm_pruner.shape.draft import Draft, Open, Traced
from llm_pruner.validation import Rule, truth

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BlockPruner(BlockMethod):
    """Whole attentions and MLPs go one after the other, always the one without which perplexity is lowest.

    It ends where the next one would take the parameters that are gone further away from the budget. Zhong et al.,
    BlockPruner: Fine-grained Pruning for Large Language Models, https://arxiv.org/abs/2406.10594, which measures
    perplexity on 256 samples of Alpaca.

    Attributes:
        alternating: Whether an attention and then an MLP go in each of ⌈s·L⌉ rounds, s the share and L the layers, as
            in the copy that Putri's code compares itself with.
    """

    alternating: bool = False

    name: ClassVar[str] = "blockpruner"
    calibration: ClassVar[Calibration] = Calibration("alpaca", nsamples=256, seq_len=2048)
    legal: ClassVar[Mapping[str, Rule]] = {**LEGAL, "alternating": truth}

    def outlined(self, share: float, blocks: Blocks, traced: Traced) -> Layers | None:
        """Return the widths of an alternating removal; None otherwise, and a PlanError where nothing would go."""
        counter = traced.counter
        if self.alternating:
            rounds = _rounds(share, blocks)
            if rounds == blocks.layers:
                most = (blocks.layers - 1) / blocks.layers
                raise PlanError(f"`param_ratio` {share:g} is all attentions and MLPs; the most is {most:.4g}")
            bare = without(counter.before, HEADS, MLP)
            return tuple(bare if layer < rounds else counter.before for layer in range(blocks.layers))
        least = min(blocks.attention, blocks.mlp) / blocks.decoder
        if share <= least / 2:
            raise PlanError(
                f"`param_ratio` {share:g} changes nothing; the smallest block is {least:.3g} of the decoder, ask for "
                "more"
            )
        return None

    def prune(
        self, model, draft: Draft, prompts: "Sequence[torch.Tensor] | None" = None, journal: Journal | None = None
    ) -> Pruned:
        """Remove one block after the other and cut; see `Method.prune`."""
        journal, prompts, groups = journal or Journal(), self.checked(model, prompts, least=2), draft.traced.groups
        assert isinstance(draft.shape, Open), "the draft is the method's own"
        blocks, share = Blocks.of(draft.traced.counter, draft.traced.config.model_type), draft.shape.share
        with self.ablation(model, prompts, journal) as ablation:
            parts = whole_parts(model, groups, HEADS, MLP)
            if self.alternating:
                _alternate(ablation, parts, _rounds(share, blocks))
            else:
                _remove_best(ablation, parts, blocks, share * blocks.decoder)
        return self.cut(model, draft, lost_whole(ablation, groups), ablation, journal)


def _rounds(share: float, blocks: Blocks) -> int:
    # 0.7 of ten layers is a little more than seven in floating point
    return math.ceil(share * blocks.layers - 1e-9)


def _alternate(ablation: Ablation, parts: Sequence[Part], rounds: int) -> None:
    for _ in progress(range(rounds), desc="blocks", unit="round"):
        for axis in (HEADS, MLP):
            left = [part for part in ablation.left(parts) if part.axis == axis]
            ablation.remove(left, ablation.losses_without(left))


def _remove_best(ablation: Ablation, parts: Sequence[Part], blocks: Blocks, budget: float) -> None:
    """Remove parts as long as that takes the parameters that are gone nearer to the budget."""
    removed = 0
    with progress(total=round(budget), desc="blocks", unit="parameter") as bar:
        while left := ablation.left(parts):
            losses = ablation.losses_without(left)
            size = blocks.of_axis(left[losses.index(min(losses))].axis)
            if removed and abs(removed + size - budget) >= abs(removed - budget):
                return
            ablation.remove(left, losses)
            removed += size
            bar.update(size)
