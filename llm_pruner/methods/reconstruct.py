"""Our own method: a shape is searched, the model reconstructed in it, and the result compared with the baseline."""

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llm_pruner.calibration.layerwise import not_finite
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.calibration.weights import Weights
from llm_pruner.calibration.windows import ENOUGH
from llm_pruner.config.limits import MOST_SEED
from llm_pruner.errors import PlanError, RunError, UsageError
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.methods.score_and_cut import Measured, ScoreAndCut
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS, MLP, PRUNABLE, Axis, Widths, is_grouped
from llm_pruner.model.depth import make_shallow
from llm_pruner.model.families import Family, family_of
from llm_pruner.model.layers import layer_number
from llm_pruner.model.surgery import empty, own_outside, widened
from llm_pruner.model.untie import untied
from llm_pruner.reconstruction.baseline import Baseline, baseline
from llm_pruner.reconstruction.end_to_end import LARGEST, Teacher, last_stream, optimise_together
from llm_pruner.reconstruction.form_search import FormSearch, Found
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.reconstruction.reconstruct import reconstruct
from llm_pruner.reconstruction.tokens import Tokens, split
from llm_pruner.shape.draft import Draft, Searched
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Budget, Request
from llm_pruner.validation import check, maybe, number, path, truth, whole

if TYPE_CHECKING:
    import torch

# tokens that the optimisation of a layer sees, in 2 to 8 passes, where nothing else is asked for
TRAINED_ON = 131_072
# parameters of all layers, up to which each layer is optimised on its own as well: it pays, and takes seconds
SMALL = 2**24
# of the text, that the layers of a further size are fitted on, and that all of them are optimised on together
FITTED, OPTIMISED = 1 / 8, 1 / 2
# of the batches that are held out, those that choose how its layers are fitted
COMPARED = 1 / 3
LEGAL = {
    "search_minutes": number(0), "per_layer": truth, "epochs": maybe(whole()),
    "global_epochs": maybe(whole()), "work_dir": maybe(path),
    "seed": whole(0, MOST_SEED),
}  # fmt: skip


@dataclass(frozen=True)
class Reconstruct:
    """The shape is searched, and what is left reconstructed so that it does what the dense model did.

    Attributes:
        search_minutes: How long shapes may be compared for a budget of parameters; 0 takes the proportional one.
        per_layer: Whether every layer gets widths of its own, by what its units cost.
        epochs: Passes over the text in which each layer is optimised as a whole; None for 2 to 8, fewer of more text,
            and for none where all layers are optimised together and have more than 16 million parameters.
        global_epochs: Passes over the text in which all layers are optimised together, towards the dense model's
            logits; None for 1, or for 0 where the layers have more than a billion parameters.
        work_dir: A folder in which finished work is kept, so that an interrupted run goes on there.
        seed: Of everything random.

    Raises:
        UsageError: A value is out of range, or of another type.
    """

    search_minutes: float = 1.0
    per_layer: bool = False
    epochs: int | None = None
    global_epochs: int | None = None
    work_dir: str | Path | None = None
    seed: int = 0

    name: ClassVar[str] = "reconstruct"
    axes: ClassVar[tuple[Axis, ...]] = PRUNABLE
    searches: ClassVar[bool] = True
    removes_layers: ClassVar[bool] = True
    calibration: ClassVar[Calibration] = Calibration("mix", nsamples=128, seq_len=2048)

    def __post_init__(self) -> None:
        check(vars(self), LEGAL, f"method {self.name}")

    def usual_axes(self, request: Request, before: Widths, family: Family) -> tuple[Axis, ...]:
        """Return heads, neurons and kv groups, and hidden channels for a ratio or a size of the whole model."""
        if not isinstance(request, Budget):
            return (HIDDEN, HEADS, MLP)
        axes = (HEADS, MLP)
        if family.derived_head_dim:
            return axes
        of_whole = request.params is not None or request.memory is not None
        hidden = of_whole and not self.per_layer and not family.post_norms
        return (*((HIDDEN,) if hidden else ()), *((KV_HEADS,) if is_grouped(before) else ()), *axes)

    def check(self, draft: Draft) -> None:
        """Raise a PlanError where hidden channels would go and no rotation goes through the model's norms."""
        model_type = draft.traced.config.model_type
        if draft.is_narrower and family_of(model_type).post_norms:
            raise PlanError(
                f"{model_type} normalises what goes into its residual stream, and no rotation goes through that; "
                "leave hidden out of `prune`, or use `importance=magnitude`"
            )

    def needs_text(self, draft: Draft) -> bool:
        """Return True: a reconstruction always fits on calibration prompts."""
        return True

    def outline(self, draft: Draft) -> tuple[Plan, Any]:
        """Return the plan that a search would start from; see `Method.outline`."""
        layers = tuple(range(len(draft.widths))) if draft.removes_layers else None
        planned = Planned.of(draft.traced, Form(draft.widths, layers))
        return replace(planned.plan, importance=self.name, seed=self.seed), planned.config

    def prune(
        self, model, draft: Draft, prompts: "Sequence[torch.Tensor] | None" = None, journal: Journal | None = None
    ) -> Pruned:
        """Search, reconstruct and compare; see `Method.prune`. Every eighth prompt is held out."""
        return next(self.prune_successively(model, [draft], prompts, journal))

    def prune_successively(
        self,
        model,
        drafts: Sequence[Draft],
        prompts: "Sequence[torch.Tensor] | None" = None,
        journal: Journal | None = None,
    ) -> Iterator[Pruned]:
        """Prune to several sizes, each after the first from the model of the one before.

        The further ones take a part of the time: their shapes follow from the costs that the first search measured,
        and their layers are fitted and optimised on less of the text, towards the same dense model's logits.

        Args:
            model: The dense model, in evaluation mode, which gives up its tensors on the way.
            drafts: What was asked for, the largest size first.
            prompts: LongTensors [length] of calibration text.
            journal: Takes lines and phases.

        Yields:
            What came of each draft. A model must not change until the next one has been made.

        Raises:
            UsageError: Prompts are missing, or a further draft does not ask for fewer parameters by heads and neurons.
            PlanError: A further size has no shape inside that of the one before.
            RunError: As in `Method.prune`; or the first model is the baseline, which is no start for another.
        """
        if not prompts:
            raise UsageError(f"method {self.name} needs calibration prompts")
        Weights(dict(model.named_parameters())).check_all_finite()
        tokens = split(prompts)
        settings, whole = self._passes(model, tokens)
        _check_further(drafts, whole)
        journal, (draft, *others) = journal or Journal(), drafts
        own_outside(model)
        folder = Path(self.work_dir).expanduser() if self.work_dir else None
        identity = ""
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            identity = _identity(model, tokens)
        with journal.timed("search"):
            search = FormSearch(
                model, draft, tokens, self.search_minutes, self.per_layer, self.seed, journal.log, folder, identity
            )
            found = search.run()
        work = _Work(tokens, settings, whole, journal, folder, identity)
        reached, form = self._first(model, draft, found, work), found.form
        for other in others:
            yield reached.pruned
            form = search.smaller(found, form, other)
            planned = self._planned(other, form)
            with journal.timed("reconstruct"):
                wide, teacher = _start(reached, planned)
            # whoever took it may have let it go, and it is as large as the next one
            del reached
            reached = self._further(wide, teacher, planned, work)
        yield reached.pruned

    def _planned(self, draft: Draft, form: Form) -> Planned:
        planned = Planned.of(draft.traced, form)
        return replace(planned, plan=replace(planned.plan, importance=self.name, seed=self.seed))

    def _first(self, model, draft: Draft, found: Found, work: "_Work") -> "_Reached":
        """Reconstruct the dense model in the form that was found, or cut it plainly where that is better."""
        form, journal = found.form, work.journal
        planned = self._planned(draft, form)
        plan, groups, wide, layers = planned.plan, planned.dense.groups, planned.wide, form.layers
        dense: Any = untied(model) if form.untied else model
        places, others = divided(work.tokens, work.settings, work.whole, draft.traced.counter.before[HIDDEN])
        fitted, fresh = work.tokens.at(places), work.tokens.at(others).batches
        with journal.timed("reconstruct"):
            parts = (work.identity, form, asdict(work.settings), places)
            own = work.folder and work.folder / hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
            done = reconstruct(dense, groups, wide, planned.config, fitted, work.settings, own, layers)
        with journal.timed("baseline"):
            plain = baseline(dense, groups, wide, fitted, done.dense_stream, layers, found.inputs)
        if not (math.isfinite(done.kl) or math.isfinite(plain.kl)):
            raise not_finite("the pruned model's logits are NaN or Inf on the calibration data", dense.dtype)
        notes = {
            **found.tried, "kl": done.kl, "kl_plain": {plain.criterion: plain.kl}, "stream_errors": done.errors,
            "fits": done.fits,
        }  # fmt: skip
        if dense is not model:
            # what the two share goes with the other's
            empty(model)
        journal.log(
            f"KL(dense ‖ pruned) on held-out calibration text: {done.kl:.4f}; "
            f"plain {plain.criterion} at this shape: {plain.kl:.4f}"
        )
        # NaN is no better than anything
        if not math.isfinite(done.kl) or plain.kl < done.kl:
            journal.log(f"note: plain {plain.criterion} is better here and is kept")
            return _Reached(self._plain(dense, draft, form, plain, notes))
        plan, teacher = replace(plan, kept=planned.named(done.kept)), None
        if work.whole:
            with journal.timed("optimise"):
                stream = dict(zip(places, done.dense_stream, strict=True))
                stream |= zip(others, last_stream(dense, fresh) if fresh else (), strict=True)
                teacher = Teacher.of(dense, work.tokens, [own for _, own in sorted(stream.items())])
                result = done.settle(dense)
                notes["kl"] = self._optimised(result, teacher, work)
        else:
            result = done.settle(dense)
        return _Reached(Pruned(result, plan, planned.config, notes), done.kept, teacher)

    def _further(self, wide, teacher: Teacher, planned: Planned, work: "_Work") -> "_Reached":
        """Make a smaller model of the last one, which is `wide`, in the dense model's shape."""
        dense, layers, least = planned.dense, planned.form.layers, ENOUGH * planned.plan.before[HIDDEN]
        with work.journal.timed("reconstruct"):
            tokens = teacher.some(FITTED, least, COMPARED).tokens
            done = reconstruct(wide, dense.groups, planned.wide, planned.config, tokens, work.settings, layers=layers)
            result = done.settle(wide)
        with work.journal.timed("optimise"):
            kl = self._optimised(result, teacher.some(OPTIMISED, least), work)
        if not math.isfinite(kl):
            raise not_finite(
                "the pruned model's logits are NaN or Inf on the calibration data", next(result.parameters()).dtype
            )
        plan = replace(planned.plan, kept=planned.named(done.kept))
        return _Reached(Pruned(result, plan, planned.config, {"kl": kl, "fits": done.fits}), done.kept, teacher)

    def _passes(self, model, tokens: Tokens) -> tuple[Settings, int]:
        """(how layers are reconstructed, passes in which all of them are optimised together)."""
        size = parameters_of_layers(model)
        whole = int(size <= LARGEST) if self.global_epochs is None else self.global_epochs
        alone = (0 if whole and size > SMALL else passes(tokens)) if self.epochs is None else self.epochs
        # the optimisation of all layers reaches input projections as well, and is as good without their fits
        return Settings(input_projections=bool(alone) or not whole, epochs=alone, seed=self.seed), whole

    def _optimised(self, model, teacher: Teacher, work: "_Work") -> float:
        """Optimise all layers of a reconstructed model together, and return its KL."""
        before, after = optimise_together(model, teacher, work.whole, self.seed)
        work.journal.log(
            f"all layers optimised together: KL {before.kl:.4f} to {after.kl:.4f}, loss {before.loss:.4f} to "
            f"{after.loss:.4f}"
        )
        return after.kl

    def _plain(self, dense, draft: Draft, form: Form, plain: Baseline, notes: dict[str, Any]) -> Pruned:
        """The model cut as the baseline says."""
        method = ScoreAndCut(plain.criterion, compensate="bias" if plain.means else "none", seed=self.seed)
        planned = Planned.of(draft.traced, form, biases=bool(plain.means))
        if form.layers:
            make_shallow(dense, form.layers)
        plan = replace(
            planned.plan, importance=plain.criterion, seed=self.seed, compensate=method.compensate,
            kept=planned.named(plain.kept),
        )  # fmt: skip
        own = replace(draft, traced=planned.stays)
        measured = Measured(means=planned.named(plain.means))
        pruned = method.apply(dense, own, plan, planned.config, measured)
        return replace(pruned, notes=notes)


@dataclass(frozen=True)
class _Work:
    """What all sizes of a run have in common."""

    tokens: Tokens
    settings: Settings
    # passes in which all layers are optimised together
    whole: int
    journal: Journal
    folder: Path | None
    # of model and text
    identity: str


@dataclass(frozen=True)
class _Reached:
    """A model, its units by the dense model's names, and how it was optimised; nothing of these of a plain one."""

    pruned: Pruned
    kept: dict[str, list[int]] = field(default_factory=dict)
    teacher: Teacher | None = None


def _start(reached: _Reached, planned: Planned) -> tuple[Any, Teacher]:
    """(a model that was reached in the shape of the dense one, its teacher): what a smaller one is made of."""
    if reached.teacher is None:
        raise RunError("a plain method is better than the reconstruction, and no start for a smaller size")
    dense = planned.dense
    wide = widened(reached.pruned.model, dense.groups, reached.kept, dense.config, planned.form.layers)
    return wide, reached.teacher


def _check_further(drafts: Sequence[Draft], whole: int) -> None:
    """Raise a UsageError where a draft asks for nothing that could be made of the model of the one before."""
    if not drafts:
        raise UsageError("no size is given")
    goals = [draft.shape.goal for draft in drafts if isinstance(draft.shape, Searched) and HIDDEN not in draft.axes]
    if len(drafts) > 1 and (len(goals) < len(drafts) or any(goal.whole for goal in goals)):
        raise UsageError("further sizes are shares of the attention and MLP parameters: give `param_ratio`")
    for (last, more), (draft, less) in itertools.pairwise(zip(drafts, goals)):
        if draft.axes != last.axes or not less.parameters < more.parameters:
            raise UsageError(f"{draft.label} is not smaller than {last.label}, from whose model it would be made")
    if len(drafts) > 1 and not whole:
        raise UsageError("further sizes need the optimisation of all layers together: give `global_epochs=1`")


def parameters_of_layers(model) -> int:
    """Return the number of parameters of all decoder layers."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if layer_number(name) is not None)


def divided(tokens: Tokens, settings: Settings, whole: int, hidden: int) -> tuple[list[int], list[int]]:
    """Return the numbers of the batches for each layer, and of those for the optimisation of all layers alone.

    Least squares use up what a text tells: a model that was fitted on it learns little more from the same text. So half
    of it is kept for the optimisation, where that is enough to fit on. Where layers are optimised on their own or
    nothing follows, they get all of it.

    Args:
        tokens: All batches.
        settings: How layers are reconstructed.
        whole: Passes in which all of them are optimised together.
        hidden: hidden_size of the dense model.
    """
    one, other = tokens.halves()
    enough = tokens.at(one).fitted_size >= ENOUGH * hidden
    return (one, other) if whole and not settings.epochs and enough else (list(range(len(tokens.batches))), [])


def passes(tokens: Tokens) -> int:
    """Return how often the optimisation goes over the text."""
    return max(2, min(8, round(TRAINED_ON / tokens.fitted_size)))


def _identity(model, tokens: Tokens) -> str:
    """A digest of the weights and the text, by which an interrupted run is recognised."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        digest.update(f"{name} {tuple(parameter.shape)} {values.sum().item()} {values.abs().sum().item()}".encode())
    for batch, held in zip(tokens.batches, tokens.held, strict=True):
        digest.update(repr((batch.tolist(), held)).encode())
    return digest.hexdigest()
