"""Importance: how much each unit of a group matters. One file per criterion; the file's name is its name.

A criterion is a function `(group, evidence) → one finite float32 score per unit`, the higher the more important,
registered by `@criterion(needs=…)`. It sees no model and no disk.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_pruner.errors import RunError, UsageError, did_you_mean

if TYPE_CHECKING:
    import torch

    from llm_pruner.groups import Group
    from llm_pruner.weights import Weights

NEEDS = ("weights",)


@dataclass(frozen=True)
class Evidence:
    """What scores are computed from. `weights` is None for a criterion that does not need them."""

    weights: "Weights | None" = None
    seed: int = 0


@dataclass(frozen=True)
class Criterion:
    name: str
    needs: frozenset[str]
    score: "Callable[[Group, Evidence], torch.Tensor]"


_REGISTRY: dict[str, Criterion] = {}


def criterion(needs: Iterable[str] = ()):
    """Registers a function under its own name, which is its file's."""

    def register(function):
        name = function.__name__
        if name in _REGISTRY and _REGISTRY[name].score.__module__ != function.__module__:
            raise ValueError(f"importance {name!r} is defined twice")
        if unknown := set(needs) - set(NEEDS):
            raise ValueError(f"importance {name!r} needs {unknown}; known: {NEEDS}")
        _REGISTRY[name] = Criterion(name, frozenset(needs), function)
        return function

    return register


def available() -> list[str]:
    """The names of all criteria, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> Criterion:
    """The criterion called `name`. UsageError, with a suggestion, when there is none."""
    if name not in available():
        raise UsageError(f"unknown importance {name!r}; {did_you_mean(name, available())}")
    importlib.import_module(f"{__name__}.{name}")
    return _REGISTRY[name]


def score(groups: "Iterable[Group]", criterion: Criterion, evidence: Evidence) -> "dict[str, torch.Tensor]":
    """{group name: float32 [units] on the CPU}. RunError when a score is not finite."""
    import torch
    from tqdm.auto import tqdm

    scores = {}
    for group in tqdm(groups, desc=f"score by {criterion.name}", unit="group", delay=2, leave=False):
        values = criterion.score(group, evidence).float().cpu()
        if values.shape != (group.units,) or not torch.isfinite(values).all():
            raise RunError(
                f"{criterion.name} gives no finite score for each of the {group.units} units of {group.name}"
            )
        scores[group.name] = values
    return scores
