"""What a pruning run will do to the model: by which method, and how much of what goes."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_pruner.calibration.mixtures import Drawn
from llm_pruner.cli.calibrating import calibration_of, windows_drawn
from llm_pruner.cli.messages import with_flags
from llm_pruner.cli.requests import (
    OF_RECONSTRUCTION,
    SCORING,
    asked_of,
    criterion_named,
    further_ratios,
    request_of,
    wants_reconstruction,
)
from llm_pruner.cli.vocabulary import Origin
from llm_pruner.config.prune import PruneOptions
from llm_pruner.console import log
from llm_pruner.errors import PlanError, PrunerError
from llm_pruner.methods import METHODS, Method, Reconstruct, ScoreAndCut, settled
from llm_pruner.model.axes import VOCAB
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output.places import check_outputs
from llm_pruner.shape.draft import Draft, draft, groups_to_score
from llm_pruner.shape.plan import Plan
from llm_pruner.vocabulary.cut import VocabularyCut


@dataclass(frozen=True)
class Decision:
    """What will be done to the model.

    Attributes:
        method: How.
        draft: What was asked for.
        plan: As far as it is known; None where scores decide the widths.
        config: The new configuration, with the plan.
        drawn: Calibration windows, where they had to be drawn to decide.
        tokens: The vocabulary that stays, of which `draft`, `plan` and `config` are; None where all of it does.
    """

    method: Method
    draft: Draft
    plan: Plan | None = None
    config: Any = None
    drawn: Drawn | None = None
    tokens: VocabularyCut | None = None

    def told(self, plan: Plan) -> Plan:
        """Return the plan of the whole model."""
        return self.tokens.told(plan) if self.tokens else plan

    def requested(self, plan: Plan) -> dict[str, float]:
        """Return the shares that were asked for, those of the whole model with the tokens that go before the rest.

        Args:
            plan: Of the whole model.
        """
        asked = dict(self.draft.requested)
        if self.tokens:
            if "parameters" in asked:
                left = (1 - asked["parameters"]) * (plan.parameters_before - self.tokens.removed[0])
                asked["parameters"] = 1 - left / plan.parameters_before
            asked[VOCAB.field] = self.tokens.share
        return asked

    @property
    def scoring(self) -> ScoreAndCut:
        """The method, of a decision to score units."""
        assert isinstance(self.method, ScoreAndCut), "only this method has scores"
        return self.method

    @property
    def to_score(self) -> list:
        """The groups whose units have to be ranked."""
        return groups_to_score(self.draft) if isinstance(self.method, ScoreAndCut) else []


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


def decided(options: PruneOptions, request, origin: Origin) -> Decision:
    """Return the method and the draft.

    Where no method is named it is a reconstruction, if there is calibration text for it and it can give the shape; else
    magnitude.
    """
    wanted = wants_reconstruction(options)
    method = method_of(options, reconstruct=wanted is not False)
    if wanted is None:
        return _by_default(options, request, method, origin)
    made = draft(request, origin.config, method)
    named = options.method or options.importance or options.plan or options.iteration
    if not wanted and not named and not made.is_copy:
        against = asked_of(options, (*SCORING, "save_plan"))[0]
        log(f"note: pruning by magnitude: {against} does not go with a reconstruction")
    return _outlined(method, made)


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


def _by_default(options: PruneOptions, request, method: Method, origin: Origin) -> Decision:
    drawn, config = None, origin.config
    try:
        made = draft(request, config, method)
        if not options.dry_run and not made.is_copy:
            tokenizer = load_tokenizer(origin.folder or origin.fetched)
            drawn = windows_drawn(calibration_of(options, method, config), options, config, tokenizer)
        return replace(_outlined(method, made), drawn=drawn)
    except PrunerError as error:
        if options.calibration_data and not isinstance(error, PlanError):
            raise
        plain = ScoreAndCut("magnitude", seed=options.seed)
        try:
            made = draft(request, config, plain)
        except PlanError:
            # which takes fewer axes, and so comes less near to a size
            if options.target_params or options.target_memory:
                raise error from None
            raise
        reason = with_flags(str(error), PruneOptions)
        log(f"note: pruning by magnitude, because no reconstruction can be made here: {reason}")
        return _outlined(plain, made)


def method_of(options: PruneOptions, reconstruct: bool) -> Method:
    """Return the method that the options name. reconstruct: what is taken where they name none."""
    if options.method or reconstruct:
        own = {name: getattr(options, name) for name in asked_of(options, OF_RECONSTRUCTION)}
        return METHODS.make(options.method or Reconstruct.name, own, {"seed": options.seed})
    return ScoreAndCut(
        criterion_named(options), options.order, options.compensate or "none", options.mask_only, options.seed
    )


def _outlined(method: Method, made: Draft) -> Decision:
    method = settled(method, made.is_copy)
    return Decision(method, made, *(method.outline(made) if made.after else (None, None)))
