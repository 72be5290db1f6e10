"""Our own method: a shape is searched, the model reconstructed in it, and the result compared with the baseline."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from llm_pruner.calibration.layerwise import not_finite
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.calibration.weights import Weights
from llm_pruner.calibration.windows import ENOUGH
from llm_pruner.config.limits import MOST_SEED
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.methods.score_and_cut import Measured, ScoreAndCut
from llm_pruner.model.axes import HEADS, HIDDEN, KV_HEADS, MLP, PRUNABLE, Axis, Widths, is_grouped
from llm_pruner.model.depth import make_shallow
from llm_pruner.model.families import Family, family_of
from llm_pruner.model.layers import layer_number
from llm_pruner.model.surgery import empty, own_outside
from llm_pruner.model.untie import untied
from llm_pruner.reconstruction.baseline import Baseline, baseline
from llm_pruner.reconstruction.end_to_end import LARGEST, Teacher, last_stream, optimise_together
from llm_pruner.reconstruction.form_search import FormSearch
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.reconstruction.reconstruct import Reconstructed, reconstruct
from llm_pruner.reconstruction.tokens import Tokens, split
from llm_pruner.shape.draft import Draft
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Budget, Request
from llm_pruner.validation import check, maybe, number, path, truth, whole

if TYPE_CHECKING:
    import torch

# tokens that the optimisation of a layer sees, in 2 to 8 passes, where nothing else is asked for
TRAINED_ON = 131_072
# parameters of all layers, up to which each layer is optimised on its own as well: it pays, and takes seconds
SMALL = 2**24
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
        if not prompts:
            raise UsageError(f"method {self.name} needs calibration prompts")
        journal = journal or Journal()
        Weights(dict(model.named_parameters())).check_all_finite()
        tokens = split(prompts)
        own_outside(model)
        folder = Path(self.work_dir).expanduser() if self.work_dir else None
        identity = ""
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            identity = _identity(model, tokens)
        with journal.timed("search"):
            found = FormSearch(
                model, draft, tokens, self.search_minutes, self.per_layer, self.seed, journal.log, folder, identity
            ).run()
        form = found.form
        planned = Planned.of(draft.traced, form)
        plan = replace(planned.plan, importance=self.name, seed=self.seed)
        planned = replace(planned, plan=plan)
        groups, wide, layers = planned.dense.groups, planned.wide, form.layers
        dense: Any = untied(model) if form.untied else model
        settings, whole = self._passes(model, tokens)
        fitted, fresh = divided(tokens, settings, whole, draft.traced.counter.before[HIDDEN])
        with journal.timed("reconstruct"):
            key = hashlib.sha256(repr((identity, form, asdict(settings), len(fitted.batches))).encode()).hexdigest()
            own = folder and folder / key[:16]
            done = reconstruct(dense, groups, wide, planned.config, fitted, settings, own, layers)
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
        if math.isfinite(done.kl) and not plain.kl < done.kl:
            plan = replace(plan, kept=planned.named(done.kept))
            result, notes["kl"] = self._optimised(done, dense, fitted, fresh, whole, journal)
            return Pruned(result, plan, planned.config, notes)
        journal.log(f"note: plain {plain.criterion} is better here and is kept")
        return self._plain(dense, draft, form, plain, notes)

    def _passes(self, model, tokens: Tokens) -> tuple[Settings, int]:
        """(how layers are reconstructed, passes in which all of them are optimised together)."""
        size = parameters_of_layers(model)
        whole = int(size <= LARGEST) if self.global_epochs is None else self.global_epochs
        alone = (0 if whole and size > SMALL else passes(tokens)) if self.epochs is None else self.epochs
        # the optimisation of all layers reaches input projections as well, and is as good without their fits
        return Settings(input_projections=bool(alone) or not whole, epochs=alone, seed=self.seed), whole

    def _optimised(
        self, done: Reconstructed, dense, fitted: Tokens, fresh: list["torch.Tensor"], epochs: int, journal: Journal
    ) -> tuple[Any, float]:
        """(the reconstructed model, its layers optimised together; its KL). The dense model gives up its tensors."""
        if not epochs:
            return done.settle(dense), done.kl
        with journal.timed("optimise"):
            stream = [*done.dense_stream, *(last_stream(dense, fresh) if fresh else ())]
            teacher = Teacher.of(dense, stream)
            result = done.settle(dense)
            before, after = optimise_together(result, teacher, fitted.and_fitted(fresh), epochs, self.seed)
        journal.log(
            f"all layers optimised together: KL {before.kl:.4f} to {after.kl:.4f}, loss {before.loss:.4f} to "
            f"{after.loss:.4f}"
        )
        return result, after.kl

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


def parameters_of_layers(model) -> int:
    """Return the number of parameters of all decoder layers."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if layer_number(name) is not None)


def divided(tokens: Tokens, settings: Settings, whole: int, hidden: int) -> tuple[Tokens, list["torch.Tensor"]]:
    """Return (the batches that layers are fitted on, those that only the optimisation of all layers sees).

    Least squares use up what a text tells: a model that was fitted on it learns little more from the same text. So half
    of it is kept for the optimisation, where that is enough to fit on. Where layers are optimised on their own or
    nothing follows, they get all of it.

    Args:
        tokens: All batches.
        settings: How layers are reconstructed.
        whole: Passes in which all of them are optimised together.
        hidden: hidden_size of the dense model.
    """
    one, other = tokens.half()
    enough = sum(batch.numel() for batch in one.fitted) >= ENOUGH * hidden
    return (one, other) if whole and not settings.epochs and enough else (tokens, [])


def passes(tokens: Tokens) -> int:
    """Return how often the optimisation goes over the text."""
    return max(2, min(8, round(TRAINED_ON / sum(batch.numel() for batch in tokens.fitted))))


def _identity(model, tokens: Tokens) -> str:
    """A digest of the weights and the text, by which an interrupted run is recognised."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().float()
        digest.update(f"{name} {tuple(parameter.shape)} {values.sum().item()} {values.abs().sum().item()}".encode())
    for batch, held in zip(tokens.batches, tokens.held, strict=True):
        digest.update(repr((batch.tolist(), held)).encode())
    return digest.hexdigest()
