"""SliceGPT in the shape of a stock checkpoint: one rotation for the whole model, then the last directions go.

H = Σ x·xᵀ over all tokens in front of the 2L + 1 norms of the residual stream (what the embeddings give, the stream
between attention and MLP, what each layer gives), raw and uncentred, in float64. With Q [d, d′] the leading
eigenvectors of H the new stream is Qᵀx. Input projections, with the weight of the norm before them folded in,
embeddings and lm_head become W·Q, output projections QᵀW and Qᵀb. Nothing is fitted.

The norms still divide by √(Σ z²/d + ε) over the d′ channels z that stay, with the old width d: the stock norm of d′
channels does that with the weight √(d/d′) and ε′ = ε·d/d′. A norm inside a layer, over the queries or keys of a head,
reads the same ε of the configuration, so what it normalises grows by √(d/d′): then its output is as before.

(SliceGPT, Ashkboos et al. 2024, https://arxiv.org/abs/2401.15024. The original rotates every block on its own, measures
behind the sliced blocks before it, and needs its own modelling code for the matrices between the rotations; with one
rotation these are identities. It adds 0.01 of H's mean diagonal to the diagonal, which changes no eigenvector.)
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from llm_pruner.calibration.activations import with_batches
from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import Layer, cause_of_nan, walk
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.errors import PlanError, UsageError, computing
from llm_pruner.methods.drafting import DraftingMethod
from llm_pruner.methods.method import Journal, Pruned
from llm_pruner.model.axes import HIDDEN, Axis
from llm_pruner.model.configuration import NORMS
from llm_pruner.model.families import family_of, holds
from llm_pruner.model.groups import Group, group_of
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.surgery import empty, finish, place
from llm_pruner.model.untie import is_tied, untied, untied_config
from llm_pruner.reconstruction.embeddings_and_head import set_entrance, set_rotated_end
from llm_pruner.reconstruction.layers import matrix, parts_of, set_matrix, watch
from llm_pruner.reconstruction.planned import Form, Planned
from llm_pruner.reconstruction.reconstruct import outer_copy
from llm_pruner.reconstruction.rotation import norms_of, rotate_projections, set_norm
from llm_pruner.shape.budget import Goal, widths_by_parameters
from llm_pruner.shape.draft import Draft, Fixed, Traced, by_target, changed, share_of
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Budget, Ratio, Request, Target

# a ratio leaves a multiple of so many channels
STEP = 8
# of a number of channels: rounding, which must not cost a step
ROUNDING = 1e-6


@dataclass(frozen=True)
class SliceGPT(DraftingMethod):
    """The residual stream keeps the directions of the most energy."""

    name: ClassVar[str] = "slicegpt"
    axes: ClassVar[tuple[Axis, ...]] = (HIDDEN,)
    calibration: ClassVar[Calibration] = Calibration(nsamples=128, seq_len=2048)

    def draft(self, request: Request, traced: Traced) -> Draft:
        """Return the draft of a ratio, a width or a budget that the hidden size alone can meet; see `Drafter.draft`."""
        before, made = traced.counter.before, None
        match request:
            case Ratio() if set(ratios := request.by_axis(self.axes)) == {HIDDEN}:
                made = self._by_ratio(ratios[HIDDEN], request, traced)
            case Target():
                made = by_target(request, traced, self)
            case Budget(axes=None | (Axis(name="hidden"),), iteration=None, ratio=None, structure=None):
                made = self._by_budget(request, traced)
        if made is None or made.widths[0].but({HIDDEN: before[HIDDEN]}) != before:
            raise UsageError(
                f"method {self.name} shrinks the hidden size alone: give `prune` hidden=R, `target` {HIDDEN.field}=N, "
                "or a size of the model that it can meet, and no other width"
            )
        if not made.is_copy:
            check_defined(traced)
        return made

    def _by_ratio(self, ratio: float, request: Ratio, traced: Traced) -> Draft:
        before = traced.counter.before
        width = before[HIDDEN]
        if ratio:
            step = math.lcm(STEP, request.round_to)
            width = math.floor(width * (1 - ratio) + ROUNDING) // step * step
            if not width:
                raise PlanError(f"{HIDDEN.field}: ratio {ratio:g} leaves less than {step} of {before[HIDDEN]} channels")
        after = traced.counter.everywhere(before.but({HIDDEN: width}))
        return Draft(traced, Fixed(after), self.axes, {HIDDEN.field: ratio}, request.label)

    def _by_budget(self, request: Budget, traced: Traced) -> Draft:
        """The width that comes nearest to the budget; lm_head's own weight, where it was tied, is paid for."""
        counter = traced.counter
        left = request.parameters_left(traced.element_size)
        share = share_of(request, counter, left)
        requested = {"decoder": share} if left is None else {"parameters": 1 - left / counter.total(counter.full)}
        made = Draft(traced, Fixed(counter.full), self.axes, requested, request.label)
        if not share:
            return made
        check_defined(traced)
        goal = Goal(counter.decoder(counter.full) * (1 - share), False) if left is None else Goal(left, True)
        own = Traced.of(untied_config(traced.config), counter.before).counter if is_tied(traced.model) else counter
        widths = widths_by_parameters(own, self.axes, goal, partial(holds, traced.config))
        return changed(replace(made, shape=Fixed(counter.everywhere(widths))), "ask for a channel less at least")

    def outline(self, draft: Draft) -> tuple[Plan, Any]:
        """Return the plan and the configuration; see `Method.outline`."""
        planned = self._planned(draft)
        return planned.plan, planned.config

    def prune(
        self, model, draft: Draft, prompts: Sequence[torch.Tensor] | None = None, journal: Journal | None = None
    ) -> Pruned:
        """Measure the stream, rotate and cut; see `Method.prune`."""
        journal, prompts = journal or Journal(), self.checked(model, prompts)
        planned = self._planned(draft)
        dense: Any = untied(model) if planned.form.untied else model
        groups = planned.dense.groups
        with journal.timed("rotation"), computing("the rotation"):
            sums = with_batches(dense, prompts, lambda batches: covariance(dense, groups, batches))
            basis, kept = leading(sums, draft.widths[0][HIDDEN])
        journal.log(f"rotation: {kept:.4f} of the stream's energy stays")
        with journal.timed("cut"), computing("the rotation"):
            new = sliced(dense, groups, planned.config, basis, prompts[0][None])
        # what the two share went with the other's
        if dense is not model:
            empty(model)
        with torch.no_grad():
            if not torch.isfinite(new(input_ids=prompts[0][None].to(new.device), use_cache=False).logits).all():
                raise cause_of_nan(new, prompts[0][None], "the rotated model")
        return Pruned(new, planned.plan, planned.config, {"energy": kept})

    def _planned(self, draft: Draft) -> Planned:
        """The plan, with the ε of the norms."""
        planned = Planned.of(draft.traced, Form(draft.widths, untied=is_tied(draft.traced.model)))
        config, field = copy.deepcopy(planned.config), epsilon_field(draft.traced.config)
        epsilon = getattr(config, field) * (draft.traced.counter.before[HIDDEN] / draft.widths[0][HIDDEN])
        setattr(config, field, epsilon)
        plan = replace(
            planned.plan, importance=self.name, seed=self.seed, config=planned.plan.config | {field: epsilon}
        )
        return replace(planned, plan=plan, config=config)


def check_defined(traced: Traced) -> None:
    """Raise a PlanError for a model whose stream no rotation goes through.

    Args:
        traced: The model.
    """
    model_type = traced.config.model_type
    family, hidden = family_of(model_type), group_of(traced.groups, HIDDEN)
    reason = None
    if family.derived_head_dim:
        reason = "derives head_dim from hidden_size, so that the hidden size cannot go alone"
    elif family.post_norms:
        reason = "normalises what goes into its residual stream, and no rotation goes through that"
    elif any(member.role == "layernorm" for member in hidden.members):
        reason = "has LayerNorms, whose means are not those of a rotated stream"
    if reason:
        raise PlanError(f"method slicegpt: {model_type} {reason}; use another method")
    epsilon_field(traced.config)


def epsilon_field(config: Any) -> str:
    """Return the field of a configuration with the ε of its norms. PlanError where there is none."""
    found = next((name for name in NORMS if getattr(config, name, None) is not None), None)
    if found is None:
        raise PlanError(f"method slicegpt: {config.model_type} has no field for the epsilon of its norms")
    return found


@torch.no_grad()
def covariance(model, groups: Sequence[Group], batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the raw, uncentred covariance of the residual stream, summed over all tokens in front of all norms.

    Args:
        model: In evaluation mode.
        groups: Its groups.
        batches: LongTensors [prompts, length].

    Returns:
        H, float64 [hidden_size, hidden_size], on the CPU.

    Raises:
        RunError: Hidden states are not finite.
    """
    total = torch.zeros((model.config.hidden_size,) * 2, dtype=torch.float64)

    def add(hidden: torch.Tensor) -> None:
        rows = (hidden.cpu() if hidden.device.type == "mps" else hidden).flatten(0, -2).double()
        total.add_((rows.T @ rows).cpu())

    for layer in walk(model, batches, "covariance", offload=True):
        with Hooks() as hooks:
            for name in norms_of(groups, layer.index):
                hooks.on_input(layer.module.get_submodule(name), add)
            layer.run()
    # in front of the final norm
    for hidden in layer.outputs:
        add(hidden.to(layer.device))
    return total


def leading(covariance: torch.Tensor, number: int) -> tuple[torch.Tensor, float]:
    """Return the leading eigenvectors of a covariance, and the share of the energy along them.

    Args:
        covariance: float64 [d, d].
        number: How many.

    Returns:
        Q, float64 [d, number], and a share of at most 1.
    """
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(0).flip(0)
    return vectors.flip(1)[:, :number].contiguous(), (values[:number].sum() / values.sum()).item()


@torch.no_grad()
def sliced(model, groups: Sequence[Group], config: Any, basis: torch.Tensor, prompt: torch.Tensor) -> Any:
    """Return the model that runs on Qᵀx. The dense one gives up its tensors.

    Args:
        model: The dense model, whose lm_head is its own.
        groups: Its groups.
        config: The configuration of the new model, with its ε.
        basis: Q [hidden_size, new hidden_size].
        prompt: LongTensor [1, length], from which it is seen which norm feeds which projection.

    Raises:
        PlanError: A norm stands where no rotation goes through.
    """
    family = family_of(model.config.model_type)
    # Apple's GPUs have no float64
    basis = basis.float() if model.device.type == "mps" else basis
    scale, new = math.sqrt(basis.shape[0] / basis.shape[1]), outer_copy(model, config)
    set_entrance(new, model, groups, basis, scale if family.scaled_embedding else 1.0)
    for layer in walk(model, [prompt], "rotation", offload=True):
        layer.run()
        rotated = copy.deepcopy(layer.module).to(basis.dtype)
        rotate_projections(rotated, layer, groups, basis.to(layer.device), family.norm_offset)
        for name in norms_of(groups, layer.index):
            set_norm(rotated.get_submodule(name), scale, basis.shape[1], family.norm_offset)
        for name in projections_before_inner_norms(layer, groups):
            _multiply(rotated.get_submodule(name), scale)
        small = decoder_layers(new)[layer.index]
        for name, parameter in layer.module.named_parameters():
            place(small, name, rotated.get_parameter(name).data.to(parameter.dtype), parameter.requires_grad)
        empty(layer.module)
    set_rotated_end(new, model, groups, basis, family.norm_offset, scale)
    for name, parameter in model.named_parameters():
        new.get_parameter(name).requires_grad_(parameter.requires_grad)
    empty(model)
    return finish(new, model)


def projections_before_inner_norms(layer: Layer, groups: Sequence[Group]) -> list[str]:
    """Return the input projections of a layer whose whole output a norm over something else than the stream reads.

    Args:
        layer: The dense layer, which has been run.
        groups: The model's groups.

    Raises:
        PlanError: Such a norm reads something else.
    """
    over_stream = set(norms_of(groups, layer.index))
    modules = dict(layer.module.named_modules())
    norms = [name for name, own in modules.items() if name not in over_stream and _has_epsilon(own)]
    names = [name for part in parts_of(groups, layer.index) for name in part.input_projections]
    run = partial(layer.call, 0, layer.stream[0])
    read, written, _ = watch(run, [modules[name] for name in norms], [modules[name] for name in names], whole=True)
    places = {_place(tensor): name for name, tensor in zip(names, written, strict=True)}
    for name, tensor in zip(norms, read, strict=True):
        if _place(tensor) not in places:
            raise PlanError(
                f"method slicegpt: what {name} of layer {layer.index} normalises is not a projection's output"
            )
    return [places[_place(tensor)] for tensor in read]


def _has_epsilon(module: nn.Module) -> bool:
    return any(hasattr(module, name) for name in ("eps", "variance_epsilon"))


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    """Where the elements of a tensor are, whatever its shape."""
    return tensor.data_ptr(), tensor.numel()


def _multiply(projection: Any, factor: float) -> None:
    """Multiply the output of a linear layer."""
    set_matrix(projection, matrix(projection) * factor)
    if projection.bias is not None:
        projection.bias *= factor
