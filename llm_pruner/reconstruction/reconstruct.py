"""The rebuild: a smaller model that gives what the dense one gave, layer by layer and without a training label.

    dense layer, its stream ──► what each projection gave, and the stream behind the layer
                                      │ targets
    pruned stream ──► readers refitted ──► heads chosen, o_proj refitted ──► readers refitted ──► neurons chosen,
                      down_proj refitted ──► cut ──► optimised as a whole ──► the pruned stream of the next layer
    behind the last: lm_head refitted where it is not tied, the last layer optimised towards the dense model's logits

Projections that read the stream aim at what they gave in the dense model; those that write to it aim at the
dense stream, so that what earlier layers lost is made up for. The dense model is not changed.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from llm_pruner.calibration.activations import batches_of
from llm_pruner.calibration.layerwise import (
    Layer,
    computing,
    decoder_layers,
    not_finite,
    put_aside,
    walk,
)
from llm_pruner.errors import UsageError
from llm_pruner.model.depth import renumbered
from llm_pruner.model.families import family_of
from llm_pruner.model.groups import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    MLP,
    Group,
    kept_positions,
)
from llm_pruner.model.surgery import empty, finish, place, skeleton
from llm_pruner.reconstruction.block_optimisation import Block, held_error, optimise
from llm_pruner.reconstruction.embeddings_and_head import outside, set_end, set_entrance
from llm_pruner.reconstruction.layer_files import read_layer, write_layer
from llm_pruner.reconstruction.layers import (
    Part,
    affine,
    inside,
    layer_number,
    matrix,
    parts_of,
    set_affine,
    watch,
)
from llm_pruner.reconstruction.least_squares import Moments, fit, normal_equations, token_weights
from llm_pruner.reconstruction.logits import divergence, optimise_logits
from llm_pruner.reconstruction.rotation import basis_of, is_layer_norm, rotate_layer
from llm_pruner.reconstruction.second_order import RIDGE, keep_heads, keep_neurons
from llm_pruner.shape.plan import Plan


@dataclass(frozen=True)
class Recipe:
    """What a rebuild does. refit: of the projections; without it the units only are chosen by the second order.
    readers: of those that read the stream too. stream: what writes to it aims at it, not at its own dense output.
    epochs: of the optimisation of each layer as a whole; 0 for none. logits: and of the last one towards the logits.
    seed: of the order of the text in that."""

    refit: bool = True
    readers: bool = True
    stream: bool = True
    epochs: int = 4
    logits: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Tokens:
    """Calibration batches: LongTensors [prompts, length], each one step of the optimisation. held[i]: batch i is
    not fitted on."""

    batches: Sequence[torch.Tensor]
    held: Sequence[bool]


STEP = 1024  # tokens of a batch
HELD = 8  # one prompt of so many is held out


def split(prompts: Sequence[torch.Tensor]) -> Tokens:
    """Batches of the prompts, every eighth of which is held out. UsageError for fewer than two."""
    if len(prompts) < 2:
        raise UsageError(f"{len(prompts)} calibration window: a rebuild needs one to fit on and one to hold out")
    held = [prompt for place, prompt in enumerate(prompts) if place % HELD == 1]
    fitted = batches_of([prompt for place, prompt in enumerate(prompts) if place % HELD != 1], STEP)
    aside = batches_of(held, STEP)
    return Tokens([*fitted, *aside], [False] * len(fitted) + [True] * len(aside))


@dataclass
class Rebuilt:
    """What came of a rebuild. kept: {group name: units}. fits: per layer, the kind of fit of each projection.
    errors: per layer, the relative squared error of the stream behind it on held-out tokens. kl: mean KL(dense ‖
    pruned) per held-out token, in nats. dense_stream: the dense model's last hidden states, for each batch.
    layers: those of the dense model that stay."""

    model: nn.Module
    kept: dict[str, list[int]] = field(default_factory=dict)
    fits: list[dict[str, str]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    kl: float = math.nan
    dense_stream: list[torch.Tensor] = field(default_factory=list)
    layers: Sequence[int] = ()

    def settle(self, dense) -> nn.Module:
        """The model where the dense one was, which gives up its tensors."""
        devices = [next(decoder_layers(dense)[layer].parameters()).device for layer in self.layers]
        empty(dense)
        for layer, device in zip(decoder_layers(self.model), devices, strict=True):
            layer.to(device)
        self.model = finish(self.model, dense)
        return self.model


@computing("the rebuild")
@torch.no_grad()
def rebuild(
    model,
    groups: Sequence[Group],
    plan: Plan,
    config,
    tokens: Tokens,
    recipe: Recipe,
    folder: Path | None = None,
    layers: Sequence[int] | None = None,
) -> Rebuilt:
    """The model of `config` with plan.after's widths, rebuilt on `tokens`. `model` stays as it is; tensors that do not
    change are shared with it, and finished layers wait on the CPU until `settle`.

    layers: those that stay, by default all; plan.after has the widths of all, and what it says of others is not used.
    folder: finished layers are kept there, and an interrupted rebuild goes on behind them. PlanError for a smaller
    hidden_size where a rotation cannot give it.
    """
    config._attn_implementation = model.config._attn_implementation
    family = family_of(model.config.model_type)
    new = skeleton(config).eval()
    stay = list(range(model.config.num_hidden_layers)) if layers is None else list(layers)
    done = Rebuilt(new, layers=stay)
    for name, parameter in model.named_parameters():
        if layer_number(name) is None:
            place(new, name, parameter.data, parameter.requires_grad)
    basis, factor = None, 1.0
    if plan.after[0].hidden_size != plan.before.hidden_size:
        centred = is_layer_norm(model.get_submodule(outside(groups)[1].removesuffix(".weight")))
        fitted = [batch for batch, held in zip(tokens.batches, tokens.held, strict=True) if not held]
        basis = basis_of(model, fitted, plan.after[0].hidden_size, centred)
        factor = math.sqrt(plan.before.hidden_size / plan.after[0].hidden_size) if family.scaled_embedding else 1.0
        set_entrance(new, model, groups, basis, factor)
    pruned = None
    for dense in walk(model, tokens.batches, "rebuild", aside=True):
        dense.run()
        work = Work(dense, pruned or dense.stream, tokens, basis)
        if pruned is None:
            work.pruned = pruned = [put_aside(work.toward(hidden).to(hidden.dtype)) for hidden in dense.stream]
        if dense.index not in stay:
            continue
        small, like = decoder_layers(new)[stay.index(dense.index)], next(dense.module.parameters())
        found = read_layer(folder, dense.index, small)
        if found is None:
            with computing(f"the rebuild of layer {dense.index}"):
                found = rebuild_layer(work, small, groups, plan, recipe, family.norm_offset)
                small.to(like.device)
                if recipe.epochs:
                    optimise(work.block(small), dense.module, recipe.epochs, seed=recipe.seed)
            small.to(like.dtype)  # what the layers behind make up for is the layer that will be saved
            if folder:
                write_layer(folder, dense.index, small, found)
        small.to(like.device, torch.float32)
        done.errors.append(held_error(work.block(small)))
        if dense.index == stay[-1]:  # what enters it is wanted once more
            work.pruned, last = list(pruned), work
        work.push(small, pruned)
        done.kept |= found[0]
        done.fits.append(found[1])
        small.to("cpu", like.dtype)
    set_end(
        new, model, groups, dense.outputs, pruned, tokens.held, basis, family.norm_offset, factor, refit=recipe.refit
    )
    new.tie_weights()
    if recipe.epochs and recipe.logits:
        run = lambda batch: last.run(small, batch)()  # noqa: E731
        small.to(like.device, torch.float32)
        ends = (model, new)
        optimise_logits(small, run, last.dense.module, ends, tokens, dense.outputs, recipe.epochs, recipe.seed)
        last.push(small.to(like.dtype).float(), pruned)
        small.to("cpu", like.dtype)
    hidden = next(group for group in groups if group.kind == HIDDEN)
    done.kept[hidden.name] = list(range(plan.after[0].hidden_size))
    for name, parameter in model.named_parameters():
        if own := renumbered(name, stay):
            new.get_parameter(own).requires_grad_(parameter.requires_grad)
    done.kl = divergence(model, new, tokens, dense.outputs, pruned)
    done.dense_stream = dense.outputs
    return done


def rebuild_layer(
    work: "Work", small: nn.Module, groups: Sequence[Group], plan: Plan, recipe: Recipe, offset: float
) -> tuple[dict[str, list[int]], dict[str, str]]:
    """({group name: kept units}, {projection: kind of fit}). Fills `small`, an empty layer of the new widths, in
    float32. offset: norms multiply by (offset + weight)."""
    dense, wide = work.dense, copy.deepcopy(work.dense.module).float()
    if work.basis is not None:
        rotate_layer(wide, dense, groups, work.basis, offset)
    attention, mlp = parts_of(groups, dense.index)
    widths, kept, notes = plan.after[dense.index], {}, {}
    direct = work.writes_directly(attention, mlp) and recipe.stream
    for part in (attention, mlp):
        if recipe.refit and recipe.readers:
            work.refit_readers(wide, part, notes)
        moments, held = work.writer_moments(wide, part, part is mlp, direct)
        writer = wide.get_submodule(part.writer)
        prior = affine(writer)
        normal, right = normal_equations(moments, prior, RIDGE)
        if part is attention:
            kv_group, head_group = part.groups[KV_HEADS], part.groups[HEADS]
            per_group = plan.before.heads_per_group
            width = matrix(writer).shape[1] // head_group.units
            kv_heads, heads = keep_heads(
                normal, right, width, kv_group.units, per_group, widths.num_key_value_heads, widths.heads_per_group
            )
            kept[kv_group.name], kept[head_group.name] = kv_heads, heads
            columns = (torch.tensor(heads)[:, None] * width + torch.arange(width)).flatten()
        else:
            group = part.groups[MLP]
            kept[group.name] = keep_neurons(normal, right, group.units, widths.intermediate_size)
            columns = torch.tensor(kept[group.name])
        own = torch.cat([columns, torch.tensor([prior.shape[1] - 1])]) if moments.intercept else columns
        own = own.to(prior.device)
        weight = torch.zeros_like(prior)
        if recipe.refit:
            found = fit(moments.columns(columns), held.columns(columns), prior[:, own], work.dtype)
            weight[:, own] = found.weight.to(weight)
            notes[part.writer] = found.kind
        else:
            weight[:, own] = prior[:, own]
        set_affine(writer, weight)
    fill(small, wide, [g for g in groups if g.layer == dense.index], kept)
    return kept, notes


def fill(small: nn.Module, wide: nn.Module, groups: Sequence[Group], kept: Mapping[str, list[int]]) -> None:
    """Gives `small` the slices of `wide` that stay, as float32 parameters."""
    parameters = {name: p.detach() for name, p in wide.named_parameters()}
    full = {m.parameter: inside(m.parameter) for group in groups for m in group.members}
    shapes = {name: tuple(parameters[own].shape) for name, own in full.items()}
    positions = {full[name]: axes for name, axes in kept_positions(groups, kept, shapes).items()}
    for name, tensor in parameters.items():
        for axis, index in positions.get(name, {}).items():
            tensor = tensor.index_select(axis, index.to(tensor.device))
        path, _, leaf = name.rpartition(".")
        setattr(small.get_submodule(path), leaf, nn.Parameter(tensor.clone()))


class Work:
    """The two streams at one layer, and the regressions between them.

    dense: a layer that has been run. pruned: the hidden states that enter the pruned one, for each batch. basis: what
    turns a dense stream into one like the pruned one, None where they have one width.
    """

    def __init__(self, dense: Layer, pruned: list[torch.Tensor], tokens: Tokens, basis: torch.Tensor | None) -> None:
        self.dense, self.pruned, self.tokens = dense, pruned, tokens
        self.basis = None if basis is None else basis.to(dense.device)

    @property
    def dtype(self) -> torch.dtype:
        """What the layer is kept in."""
        return next(self.dense.module.parameters()).dtype

    def here(self, stream: torch.Tensor) -> torch.Tensor:
        """Float32, where the layer is."""
        return stream.to(self.dense.device).float()

    def toward(self, stream: torch.Tensor) -> torch.Tensor:
        """A dense stream as the pruned one should be, float32."""
        return self.here(stream) if self.basis is None else self.here(stream) @ self.basis

    def block(self, module: nn.Module) -> Block:
        """Squared errors of the stream behind the layer, each token weighted."""

        def error(batch: int) -> torch.Tensor:
            difference = self.run(module, batch)().float() - self.toward(self.dense.outputs[batch])
            return (difference.square().mean(-1) * self.weights(batch)).mean()

        return Block(module, error, self.tokens.held)

    def dense_run(self, batch: int):
        return lambda: self.dense.call(batch, self.dense.stream[batch])

    def run(self, module: nn.Module, batch: int):
        arguments, options = self.dense.arguments[batch]
        return lambda: module(self.here(self.pruned[batch]), *arguments, **options)

    def push(self, module: nn.Module, stream: list[torch.Tensor]) -> None:
        """Fills `stream` with what the module gives, batch by batch: no two streams more than there have to be."""
        for batch, hidden in enumerate(stream):
            output = self.run(module, batch)().to(hidden.dtype)
            if not torch.isfinite(output).all():
                raise not_finite(f"layer {self.dense.index}, rebuilt, gives NaN or Inf", hidden.dtype)
            stream[batch] = put_aside(output)

    def weights(self, batch: int) -> torch.Tensor:
        """One over the energy of each token's dense stream, [prompts, tokens]: relative errors count."""
        return token_weights(self.here(self.dense.outputs[batch]).square().mean(-1))

    def writes_directly(self, attention: Part, mlp: Part) -> bool:
        """Whether the layer adds what its writers give to the stream as it is (not so where a norm comes between)."""
        module = self.dense.module
        writers = [module.get_submodule(part.writer) for part in (attention, mlp)]
        _, given, out = watch(self.dense_run(0), outputs=writers, whole=True)
        total = self.here(self.dense.stream[0]) + sum(tensor.float() for tensor in given)
        return bool((total - out.float()).norm() <= 0.02 * out.float().norm())

    def refit_readers(self, wide: nn.Module, part: Part, notes: dict) -> None:
        """Towards what they gave in the dense layer."""
        own, dense = ([m.get_submodule(n) for n in part.readers] for m in (wide, self.dense.module))
        sums = [Moments(own[0].bias is not None) for _ in range(2)]
        for batch, held in enumerate(self.tokens.held):
            _, targets, _ = watch(self.dense_run(batch), outputs=dense)
            inputs, _, _ = watch(self.run(wide, batch), inputs=own[:1])
            sums[held].add(inputs[0], torch.cat(targets, -1))
        start = 0
        for name, module in zip(part.readers, own, strict=True):
            prior = affine(module)
            found = fit(*(moments.outputs(start, start + len(prior)) for moments in sums), prior, self.dtype)
            set_affine(module, found.weight)
            notes[name] = found.kind
            start += len(prior)

    def writer_moments(self, wide: nn.Module, part: Part, last: bool, direct: bool) -> tuple[Moments, Moments]:
        """(fitted, held) moments of what the writer reads and should give.

        last: it is the last of the layer to write. direct: what it gives is added to the stream.
        """
        writer, dense = (m.get_submodule(part.writer) for m in (wide, self.dense.module))
        sums = [Moments(writer.bias is not None) for _ in range(2)]
        for batch, held in enumerate(self.tokens.held):
            if direct and last:
                inputs, given, out = watch(self.run(wide, batch), inputs=[writer], outputs=[writer], whole=True)
                target = self.toward(self.dense.outputs[batch]) - (out.float() - given[0].float())
            else:
                inputs, _, _ = watch(self.run(wide, batch), inputs=[writer])
                _, given, _ = watch(self.dense_run(batch), outputs=[dense])
                target = self.toward(given[0])
                if direct:
                    target = target + self.toward(self.dense.stream[batch]) - self.here(self.pruned[batch])
            sums[held].add(inputs[0], target, self.weights(batch))
        return sums[0], sums[1]
