"""What the methods have in common that remove whole attentions or MLPs by the perplexity without them."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from llm_pruner.calibration.activations import batches_of
from llm_pruner.calibration.memory import tokens_for
from llm_pruner.config.limits import MOST_TOKENS
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.methods import drafting
from llm_pruner.methods.drafting import DraftingMethod
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, Axis, Layers
from llm_pruner.model.groups import Group, group_of
from llm_pruner.model.surgery import cut
from llm_pruner.reconstruction.ablation import Ablation, first_tokens
from llm_pruner.shape.blocks import Blocks, two_stages, without
from llm_pruner.shape.draft import Draft, Fixed, Open, Traced
from llm_pruner.shape.plan import Plan, make_plan
from llm_pruner.shape.request import Budget, Request
from llm_pruner.validation import Rule, maybe, whole

if TYPE_CHECKING:
    import torch

LEGAL: dict[str, Rule] = {**drafting.LEGAL, "perplexity_tokens": maybe(whole(2, MOST_TOKENS))}


@dataclass(frozen=True)
class BlockMethod(DraftingMethod):
    """A method with a budget of its own, which measures perplexity on the first calibration prompts.

    Attributes:
        perplexity_tokens: The first prompts that have so many tokens together are what perplexity is measured on; None
            for all.

    Raises:
        UsageError: A value is out of range, or of another type.
    """

    perplexity_tokens: int | None = None

    axes: ClassVar[tuple[Axis, ...]] = (HEADS, KV_HEADS, MLP)
    legal: ClassVar[Mapping[str, Rule]] = LEGAL

    def draft(self, request: Request, traced: Traced) -> Draft:
        """Return the draft of a share of the decoder's parameters; see `Drafter`."""
        share = share_of(request, self.name)
        shape: Fixed | Open = Fixed(traced.counter.full)
        if share:
            blocks = Blocks.of(traced.counter, traced.config.model_type)
            shape = Open(share, self.outlined(share, blocks, traced))
        return Draft(traced, shape, self.axes, {"decoder": share}, f"`param_ratio` {share:g}")

    def outlined(self, share: float, blocks: Blocks, traced: Traced) -> Layers | None:
        """Return the widths of layers as many as will have them; None where only the text tells how many.

        Args:
            share: What goes of the parameters of all decoder layers.
            blocks: The parts of the model.
            traced: The model.

        Raises:
            PlanError: The method cannot remove that share.
        """
        raise NotImplementedError

    def outline(self, draft: Draft) -> tuple[Plan, Any]:
        """Return the plan as far as its numbers are known; see `Method.outline`."""
        return self.planned(draft, draft.widths)

    def planned(self, draft: Draft, after: Layers) -> tuple[Plan, Any]:
        """Return the plan of some widths, without its kept units, and the new configuration."""
        plan, config = make_plan(draft.traced.model, draft.traced.groups, after)
        return replace(plan, importance=self.name, seed=self.seed), config

    @contextlib.contextmanager
    def ablation(self, model, prompts: "Sequence[torch.Tensor]", journal: Journal) -> "Iterator[Ablation]":
        """Yield the model to take parts from, and log what that came to."""
        batches = batches_of(first_tokens(prompts, self.perplexity_tokens), tokens_for(model))
        with journal.timed("remove"), Ablation(model, batches) as ablation:
            ablation.losses.append(ablation.loss())
            yield ablation
            first, *_, last = (*ablation.perplexities, ablation.perplexities[-1])
            journal.log(
                f"removed one after the other: {len(ablation.gone)}; perplexity on {ablation.tokens:,} calibration "
                f"tokens: {first:.2f} before, {last:.2f} after"
            )

    def cut(self, model, draft: Draft, kept: Mapping[str, list[int]], ablation: Ablation, journal: Journal) -> Pruned:
        """Return the model with only the units that stay.

        Args:
            model: The model, which gives up its tensors.
            draft: What was asked for.
            kept: {group name: units that stay}, of groups that lose some.
            ablation: What was measured, for the report.
            journal: Takes the phase.
        """
        groups = draft.traced.groups
        units = {group.name: kept.get(group.name, list(range(group.units))) for group in groups}
        plan, config = self.planned(draft, widths_left(groups, units, draft.traced.counter.full))
        notes = {
            "removed": [f"layer {part.layer}: {_called(part.axis, part.unit)}" for part in ablation.gone],
            "perplexities": ablation.perplexities,
            "perplexity_tokens": ablation.tokens,
        }
        with journal.timed("cut"):
            return Pruned(cut(model, groups, units, config), replace(plan, kept=units), config, notes)


def share_of(request: Request, name: str) -> float:
    """Return the share of the decoder's parameters that a request says.

    Args:
        request: How much should go.
        name: Of the method, for the message.

    Raises:
        UsageError: The request says something else, or more.
    """
    if not isinstance(request, Budget) or request != Budget(param_ratio=request.param_ratio or 0.0):
        raise UsageError(
            f"method {name} divides a share of the decoder's parameters by a rule of its own: give `param_ratio=R` and "
            "nothing else that says how much goes, or where"
        )
    return request.param_ratio or 0.0


def stages_of(draft: Draft) -> tuple[int, int]:
    """Return how many attentions go and how many neurons of each layer stay, by 2SSP's rule."""
    assert isinstance(draft.shape, Open), "the draft is a block method's own"
    return two_stages(Blocks.of(draft.traced.counter, draft.traced.config.model_type), draft.shape.share)


def two_stage_outline(share: float, blocks: Blocks, traced: Traced) -> Layers:
    """Return the widths of layers of which as many have no attention, and all as many neurons, as 2SSP's rule says.

    Args:
        share: What goes of the parameters of all decoder layers.
        blocks: The parts of the model.
        traced: The model.

    Raises:
        PlanError: The rule does not give that share, or changes nothing.
    """
    attentions, neurons = two_stages(blocks, share)
    narrow = traced.counter.before.but({MLP: neurons})
    bare = without(narrow, HEADS)
    after = tuple(bare if layer < attentions else narrow for layer in range(blocks.layers))
    if after == traced.counter.full:
        least = blocks.mlp / blocks.neurons * blocks.layers / blocks.decoder
        raise PlanError(
            f"`param_ratio` {share:g} changes nothing; a neuron of every layer is {least:.3g}, ask for more"
        )
    return after


def widths_left(groups: Iterable[Group], kept: Mapping[str, list[int]], full: Layers) -> Layers:
    """Return the widths of every layer when some units stay.

    Args:
        groups: The groups of the model.
        kept: {group name: units that stay}.
        full: The widths of every layer before.
    """
    after = list(full)
    for group in groups:
        if group.layer is not None:
            after[group.layer] = after[group.layer].but({group.axis: len(kept[group.name])})
    return tuple(after)


def lost_whole(ablation: Ablation, groups: Sequence[Group]) -> dict[str, list[int]]:
    """Return {group name: no units} of the attentions and MLPs that are gone as wholes.

    Args:
        ablation: What is gone.
        groups: The groups of the model.
    """
    axes = {HEADS: (HEADS, KV_HEADS), MLP: (MLP,)}
    return {group_of(groups, axis, part.layer).name: [] for part in ablation.gone for axis in axes.get(part.axis, ())}


def _called(axis: Axis, unit: int | None) -> str:
    return {HEADS: "attention", MLP: "mlp"}.get(axis, f"kv group {unit}")
