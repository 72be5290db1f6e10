"""ShortGPT: the layers that turn the residual stream the least go.

With x_l and x_l+1 what enters and what leaves layer l, its block influence is BI_l = 1 − mean over all tokens of
cos(x_l, x_l+1). Of L layers the ⌈s·L⌉ with the lowest influence go, all measured on the dense model; nothing
compensates for them. (ShortGPT, Men et al. 2024, https://arxiv.org/abs/2403.03853)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from llm_pruner.calibration.activations import with_batches
from llm_pruner.calibration.layerwise import walk
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.methods.drafting import DraftingMethod
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.model.axes import LAYERS, Axis
from llm_pruner.model.depth import make_shallow
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.shape.draft import Draft, Fixed, Traced, by_target
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Budget, Request, Target

# decimals of a number of layers: what lies behind them is rounding, which must not cost a layer
DECIMALS = 9


@dataclass(frozen=True)
class ShortGPT(DraftingMethod):
    """The layers with the lowest block influence are removed."""

    name: ClassVar[str] = "shortgpt"
    axes: ClassVar[tuple[Axis, ...]] = (LAYERS,)
    removes_layers: ClassVar[bool] = True
    calibration: ClassVar[Calibration] = Calibration("c4", nsamples=256, seq_len=2048)

    def draft(self, request: Request, traced: Traced) -> Draft:
        """Return the draft of a share or a number of layers; see `Drafter.draft`."""
        full, made = traced.counter.full, None
        match request:
            case Budget(param_ratio=float(share), axes=None, structure=None):
                stay = layers_left(len(full), share)
                made = Draft(traced, Fixed(full[:stay]), self.axes, {LAYERS.name: share}, request.label)
            case Target():
                made = by_target(request, traced, self)
        if made is None or made.widths[0] != full[0]:
            raise UsageError(
                f"method {self.name} removes whole layers: give `param_ratio`=R, or `target` {LAYERS.field}=N, and "
                "no other width"
            )
        return made

    def check(self, draft: Draft) -> None:
        """Raise a UsageError for a plan to replay, and a PlanError where a layer computes by its number."""
        super().check(draft)
        # GPT-2's, which divides attention scores by the number of the layer, counted from 1
        if draft.removes_layers and getattr(draft.traced.config, "scale_attn_by_inverse_layer_idx", False):
            raise PlanError(
                "scale_attn_by_inverse_layer_idx: what a layer computes depends on its number here, which changes "
                "when layers go; use a method that removes none"
            )

    def outline(self, draft: Draft) -> tuple[Plan, Any]:
        """Return the plan, as if the first layers stayed; see `Method.outline`."""
        planned = self._planned(draft, range(len(draft.widths)))
        return planned.plan, planned.config

    def prune(
        self, model, draft: Draft, prompts: Sequence[torch.Tensor] | None = None, journal: Journal | None = None
    ) -> Pruned:
        """Measure every layer's influence and remove the lowest; see `Method.prune`."""
        journal, prompts = journal or Journal(), self.checked(model, prompts)
        with journal.timed("score"):
            influence = with_batches(model, prompts, lambda batches: block_influence(model, batches))
        layers = most_influential(influence, len(draft.widths))
        gone = sorted(set(range(len(influence))) - set(layers))
        journal.log(f"block influence: layers {', '.join(map(str, gone))} go")
        planned = self._planned(draft, layers)
        with journal.timed("cut"):
            make_shallow(model, layers)
        return Pruned(model, planned.plan, planned.config, {"influence": influence})

    def _planned(self, draft: Draft, layers: Sequence[int]) -> Planned:
        planned = Planned.of(draft.traced, Form(draft.widths, tuple(layers)))
        return replace(planned, plan=replace(planned.plan, importance=self.name, seed=self.seed))


def layers_left(number: int, share: float) -> int:
    """Return how many layers stay when ⌈share·number⌉ go.

    Args:
        number: How many there are.
        share: What goes, in [0, 1).

    Raises:
        PlanError: None would stay.
    """
    left = number - math.ceil(round(share * number, DECIMALS))
    if left < 1:
        highest = math.floor((1 - 1 / number) * 1e6) / 1e6
        raise PlanError(f"the ratio {share:g} leaves none of {number} layers; the highest legal ratio is {highest:g}")
    return left


@torch.no_grad()
def block_influence(model, batches: Sequence[torch.Tensor]) -> list[float]:
    """Return 1 − mean over all tokens of cos(input, output) for each layer.

    Args:
        model: In evaluation mode.
        batches: LongTensors [prompts, length].

    Raises:
        RunError: Hidden states are not finite.
    """
    tokens, influence = sum(batch.numel() for batch in batches), []
    for layer in walk(model, batches, "block influence", offload=True):
        layer.run()
        total = sum(
            (1 - cosines(before.to(layer.device), after.to(layer.device))).sum().item()
            for before, after in zip(layer.stream, layer.outputs, strict=True)
        )
        influence.append(total / tokens)
    return influence


def cosines(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Return the cosine of the angle between two streams for each token; 0 where one of them is silent.

    Args:
        before: [prompts, tokens, hidden_size].
        after: Likewise.

    Returns:
        float32 [prompts, tokens].
    """
    return torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)


def most_influential(influence: Sequence[float], number: int) -> list[int]:
    """Return the layers of the highest influence, ascending; of equal ones the later stay.

    Args:
        influence: Of each layer.
        number: How many stay.
    """
    lowest_first = sorted(range(len(influence)), key=lambda layer: influence[layer])
    return sorted(lowest_first[len(influence) - number :])
