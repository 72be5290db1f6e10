"""Further sizes of the same run, each made of the model of the one before."""

from dataclasses import dataclass, replace
from pathlib import Path

from llm_pruner.cli.deciding import Decision, decided
from llm_pruner.cli.requests import further_ratios, request_of
from llm_pruner.cli.vocabulary import Origin
from llm_pruner.config.prune import PruneOptions
from llm_pruner.methods import Reconstruct
from llm_pruner.output.places import check_outputs


@dataclass(frozen=True)
class Pruning:
    """One of the sizes that a run prunes to.

    Attributes:
        options: Those of a run that prunes to this size.
        decision: What will be done.
        target: The folder to save to, if any.
    """

    options: PruneOptions
    decision: Decision
    target: Path | None


def further_prunings(options: PruneOptions, origin: Origin, source: str) -> list[Pruning]:
    """Return the prunings behind the first.

    Args:
        options: Of the run, without what they say about the vocabulary.
        origin: The model.
        source: Where it is.

    Raises:
        PlanError: The model cannot have one of the sizes.
        UsageError: A folder cannot be written.
    """
    found = []
    for ratio in further_ratios(options):
        folder = options.save_model and f"{Path(options.save_model)}-param_ratio{ratio}"
        own = replace(
            options,
            method=options.method or Reconstruct.name,
            param_ratio=ratio,
            further_ratios=None,
            save_model=folder,
        )
        decision = replace(decided(own, request_of(own), origin), tokens=origin.tokens)
        found.append(Pruning(own, decision, check_outputs(own, source)))
    return found
