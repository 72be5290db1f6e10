"""What a pruning method is."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from llm_pruner.calibration.statistics import Calibration
from llm_pruner.registry import Registry
from llm_pruner.shape.draft import Draft, Shaper
from llm_pruner.shape.plan import Plan

if TYPE_CHECKING:
    import torch

METHODS = Registry(
    "llm_pruner.methods",
    "method",
    {
        "reconstruct": "llm_pruner.methods.reconstruct:Reconstruct",
        "score_and_cut": "llm_pruner.methods.score_and_cut:ScoreAndCut",
        "shortgpt": "llm_pruner.methods.shortgpt:ShortGPT",
        "slicegpt": "llm_pruner.methods.slicegpt:SliceGPT",
    },
)


@dataclass(frozen=True)
class Journal:
    """What a method tells while it works.

    Attributes:
        log: Takes a line for the user.
        timed: Returns a context manager that measures a phase by its name.
    """

    log: Callable[[str], None] = lambda text: None
    timed: Callable[[str], AbstractContextManager] = lambda phase: contextlib.nullcontext()


@dataclass
class Pruned:
    """What came of pruning.

    Attributes:
        model: The pruned model.
        plan: What was done.
        config: Its configuration.
        notes: What the method measured on the way, for the report.
    """

    model: Any
    plan: Plan
    config: Any
    notes: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Method(Shaper, Protocol):
    """A pruning method: a frozen dataclass whose fields are its options."""

    @property
    def calibration(self) -> Calibration:
        """The calibration text that it is used with by default."""

    @property
    def seed(self) -> int:
        """The seed of everything random."""

    def needs_text(self, draft: Draft) -> bool:
        """Return whether calibration prompts are needed for what the draft asks for."""

    def outline(self, draft: Draft) -> tuple[Plan, Any]:
        """Return the plan as far as the draft tells, and the new configuration. PlanError when no class holds it."""

    def prune(
        self, model, draft: Draft, prompts: "Sequence[torch.Tensor] | None" = None, journal: Journal | None = None
    ) -> Pruned:
        """Prune the model, which gives up its tensors on the way.

        Args:
            model: A trained model in evaluation mode.
            draft: What was asked for, of `shape.draft.draft` with this method.
            prompts: LongTensors [length] of calibration text.
            journal: Takes lines and phases.

        Raises:
            RunError: Weights, statistics or the result are not finite, or memory runs out.
            PlanError: No class holds the widths that were decided.
            UsageError: Prompts are needed and missing.
        """
