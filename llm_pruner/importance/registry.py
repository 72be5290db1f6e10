"""Importance: how much each unit of a group matters. One file per criterion; the file's name is its name.

A criterion is a function `(group, evidence) → finite float32 scores`, the higher the more important, registered by
`@criterion(…)`: one per unit, or one per equal part of a unit (a head's columns) when the unit's is their sum.
It sees no model and no disk.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llm_pruner.errors import RunError, UsageError, did_you_mean
from llm_pruner.importance import criteria
from llm_pruner.model.groups import HEADS, KINDS, KV_HEADS, MLP, reader

if TYPE_CHECKING:
    import torch

    from llm_pruner.calibration.activations import Inputs
    from llm_pruner.calibration.gradients import Products
    from llm_pruner.calibration.weights import Weights
    from llm_pruner.model.groups import Group

MOMENTS, ABSOLUTE, CONTRIBUTION = "moments", "absolute", "contribution"  # statistics of a projection's inputs
ACTIVATIONS = (MOMENTS, ABSOLUTE, CONTRIBUTION)
WEIGHTS, GRADIENTS = "weights", "gradients"
NEEDS = (WEIGHTS, *ACTIVATIONS, GRADIENTS)
UNIT, HEAD, COLUMN = "unit", "head", "column"  # what has a score of its own
READ = (HEADS, KV_HEADS, MLP)  # the kinds whose units one projection of their layer reads


@dataclass(frozen=True)
class Evidence:
    """What scores are computed from; only what the criterion needs is there.

    inputs: statistics of what o_proj and down_proj read, by the name of their weight. products: weight times gradient,
    by parameter. metrics, taylor: the options of that name.
    """

    weights: "Weights | None" = None
    inputs: "Mapping[str, Inputs]" = field(default_factory=dict)
    products: "Mapping[str, Products]" = field(default_factory=dict)
    seed: int = 0
    metrics: str = "WIFV"
    taylor: str = "param_first"


@dataclass(frozen=True)
class Calibration:
    """The text a method was published with: data set, number of windows or prompts, tokens of each at most."""

    data: str = "wikitext2"
    nsamples: int = 128
    seq_len: int = 128


@dataclass(frozen=True)
class Criterion:
    """needs: of NEEDS. kinds: the groups it is defined for. sequential: every layer is measured behind the
    pruned layers before it. options: those of Options that change its scores. calibration: its default. per: what has
    a score of its own: a unit, or each equal part of it (a query head, a column that is read), which add up."""

    name: str
    needs: frozenset[str]
    score: "Callable[[Group, Evidence], torch.Tensor]"
    kinds: tuple[str, ...]
    sequential: bool
    options: tuple[str, ...]
    calibration: Calibration
    per: str = UNIT

    @property
    def calibrated(self) -> bool:
        return bool(self.needs - {WEIGHTS})

    def scores_of(self, group: "Group") -> int:
        """How many scores the group gets."""
        if self.per == UNIT or group.kind not in READ:
            return group.units
        columns = reader(group).width
        return group.units * (columns if self.per == COLUMN else columns // min(m.width for m in group.members))


# What stands for a criterion where the method is `best`, which scores by itself
BEST = Criterion("best", frozenset(), None, KINDS, False, (), Calibration(nsamples=128, seq_len=2048))

_REGISTRY: dict[str, Criterion] = {}


def criterion(
    needs: Iterable[str] = (),
    kinds: tuple[str, ...] = KINDS,
    sequential: bool = False,
    options: tuple[str, ...] = (),
    calibration: Calibration | None = None,
    per: str = UNIT,
):
    """Registers a function under its own name, which is its file's."""

    def register(function):
        name = function.__name__
        if name in _REGISTRY and _REGISTRY[name].score.__module__ != function.__module__:
            raise ValueError(f"importance {name!r} is defined twice")
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"importance {name!r} needs {unknown}; known: {NEEDS}")
        _REGISTRY[name] = Criterion(
            name, frozenset(needs), function, kinds, sequential, options, calibration or Calibration(), per
        )
        return function

    return register


def available() -> list[str]:
    """The names of all criteria, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(criteria.__path__))


def get(name: str) -> Criterion:
    """The criterion called `name`. UsageError, with a suggestion, when there is none."""
    if name not in available():
        raise UsageError(f"unknown importance {name!r}; {did_you_mean(name, available())}")
    importlib.import_module(f"{criteria.__name__}.{name}")
    return _REGISTRY[name]


def score(groups: "Iterable[Group]", criterion: Criterion, evidence: Evidence) -> "dict[str, torch.Tensor]":
    """{group name: float32 scores on the CPU}. RunError when a score is not finite."""
    import torch
    from tqdm.auto import tqdm

    from llm_pruner.calibration.layerwise import computing

    scores = {}
    for group in tqdm(groups, desc=f"score by {criterion.name}", unit="group", delay=2, leave=False):
        with computing(f"scoring {group.name} by {criterion.name}", "try --device cpu"):
            values = criterion.score(group, evidence).float().cpu()
        if values.dim() != 1 or len(values) % group.units or not torch.isfinite(values).all():
            raise RunError(
                f"{criterion.name} gives no finite score for each of the {group.units} units of {group.name}: "
                "its weights, or what they read, are too large; another --importance may do"
            )
        scores[group.name] = values
    return scores
