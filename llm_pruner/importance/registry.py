"""Criteria by name, and the scores that one gives to groups."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from llm_pruner.calibration.statistics import Statistics
from llm_pruner.console import progress
from llm_pruner.errors import RunError, computing
from llm_pruner.importance.criterion import Criterion
from llm_pruner.model.groups import Group
from llm_pruner.registry import Registry

if TYPE_CHECKING:
    import torch

HERE = "llm_pruner.importance.criteria"
CRITERIA = Registry(
    "llm_pruner.criteria",
    "importance",
    {
        "amp": f"{HERE}.amp:Amp",
        "flap": f"{HERE}.flap:Flap",
        "mag_sp": f"{HERE}.mag_sp:MagSp",
        "magnitude": f"{HERE}.magnitude:Magnitude",
        "random": f"{HERE}.random:Random",
        "taylor": f"{HERE}.taylor:Taylor",
        "wanda_sp": f"{HERE}.wanda_sp:WandaSp",
    },
)


def criterion_of(
    name: str | Criterion, options: Mapping[str, Any] | None = None, usual: Mapping[str, Any] | None = None
) -> Criterion:
    """Return a criterion by its name.

    Args:
        name: A registered name, perhaps with options (`flap:metrics=IFV`), or a criterion, which is returned as it is.
        options: {option: value}, of which those that are None count as not given.
        usual: {option: value} for criteria that have such an option and are not given another value.

    Raises:
        UsageError: There is no such criterion, or it has no such option or value.
    """
    if isinstance(name, Criterion):
        return name
    return CRITERIA.make(name, options, usual)


def score(groups: Iterable[Group], criterion: Criterion, statistics: Statistics) -> "dict[str, torch.Tensor]":
    """Score the units of groups.

    Args:
        groups: In the units that are ranked.
        criterion: What scores.
        statistics: What the criterion needs, and perhaps more.

    Returns:
        {group name: float32 [units], or equal parts of units, on the CPU}.

    Raises:
        RunError: A score is not finite.
    """
    import torch

    scores = {}
    for group in progress(groups, desc=f"score by {criterion.name}", unit="group"):
        with computing(f"scoring {group.name} by {criterion.name}", "try `device=cpu`"):
            values = criterion.score(group, statistics).float().cpu()
        if values.dim() != 1 or len(values) % group.units or not torch.isfinite(values).all():
            raise RunError(
                f"{criterion.name} gives no finite score for each of the {group.units} units of {group.name}: "
                "its weights, or what they read, are too large; another `importance` may do"
            )
        scores[group.name] = values
    return scores
