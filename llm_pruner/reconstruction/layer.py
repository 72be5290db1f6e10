"""One decoder layer reconstructed: its projections fitted, its units chosen, the rest cut."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import Layer, not_finite, offloaded
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, Widths, heads_per_group
from llm_pruner.model.groups import Group, kept_positions
from llm_pruner.model.layers import inside
from llm_pruner.model.surgery import place
from llm_pruner.reconstruction.block_optimisation import Block, held_error
from llm_pruner.reconstruction.layers import Part, affine, matrix, parts_of, set_affine, watch
from llm_pruner.reconstruction.least_squares import (
    CommonInput,
    Moments,
    fit,
    least_energy,
    normal_equations,
    token_weights,
)
from llm_pruner.reconstruction.rotation import rotate_layer
from llm_pruner.reconstruction.second_order import RIDGE, keep_heads, keep_neurons
from llm_pruner.reconstruction.tokens import Tokens


@dataclass(frozen=True)
class Settings:
    """Which parts of a reconstruction are done.

    Attributes:
        least_squares: Whether projections are fitted; without it the units only are chosen by the second order.
        input_projections: Whether those are fitted too, besides the output projections.
        stream: Whether an output projection aims at the dense stream, not at its own dense output.
        epochs: Of the optimisation of each layer as a whole; 0 for none.
        logits: Whether the last layer is optimised towards the dense model's logits too.
        seed: Of the order of the text in that.
    """

    least_squares: bool = True
    input_projections: bool = True
    stream: bool = True
    epochs: int = 4
    logits: bool = True
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What was decided about a layer.

    Attributes:
        kept: {group name: units that stay}.
        fits: {projection: kind of its fit}.
    """

    kept: dict[str, list[int]]
    fits: dict[str, str]


def reconstruct_layer(
    work: "Work",
    small: nn.Module,
    groups: Sequence[Group],
    before: Widths,
    after: Widths,
    settings: Settings,
    offset: float,
) -> Outcome:
    """Fill `small`, an empty layer of the widths `after`, in float32.

    Args:
        work: The two streams at the layer, whose dense one has been run.
        small: The layer to fill.
        groups: The model's groups.
        before: The widths of the dense layer.
        after: The widths of the new one.
        settings: What is done.
        offset: Norms multiply by (offset + weight).
    """
    dense, wide = work.dense, copy.deepcopy(work.dense.module).float()
    if work.basis is not None:
        rotate_layer(wide, dense, groups, work.basis, offset)
    attention, mlp = parts_of(groups, dense.index)
    kept: dict[str, list[int]] = {}
    fits: dict[str, str] = {}
    direct = work.writes_directly(attention, mlp) and settings.stream
    for part in (attention, mlp):
        if settings.least_squares and settings.input_projections:
            fits |= work.fit_input_projections(wide, part)
        moments, held = work.output_moments(wide, part, part is mlp, direct)
        projection = wide.get_submodule(part.output_projection)
        prior = affine(projection)
        normal, right = normal_equations(moments, prior, RIDGE)
        kept |= _choose(normal, right, part, before, after, matrix(projection).shape[1])
        columns = _columns(part, kept, matrix(projection).shape[1])
        own = torch.cat([columns, torch.tensor([prior.shape[1] - 1])]) if moments.intercept else columns
        own = own.to(prior.device)
        weight = torch.zeros_like(prior)
        if settings.least_squares:
            found = fit(moments.columns(columns), held.columns(columns), prior[:, own], work.dtype)
            weight[:, own] = found.weight.to(weight)
            fits[part.output_projection] = found.kind
        else:
            weight[:, own] = prior[:, own]
        set_affine(projection, weight)
    fill(small, wide, [g for g in groups if g.layer == dense.index], kept)
    return Outcome(kept, fits)


def _choose(
    normal: torch.Tensor, right: torch.Tensor, part: Part, before: Widths, after: Widths, inputs: int
) -> dict[str, list[int]]:
    """{group name: units that stay}, of a part whose output projection has so many inputs."""
    if MLP in part.groups:
        group = part.groups[MLP]
        return {group.name: keep_neurons(normal, right, group.units, after[MLP])}
    kv_group, head_group = part.groups[KV_HEADS], part.groups[HEADS]
    width = inputs // head_group.units
    kv_heads, heads = keep_heads(
        normal, right, width, kv_group.units, heads_per_group(before), after[KV_HEADS], heads_per_group(after)
    )
    return {kv_group.name: kv_heads, head_group.name: heads}


def _columns(part: Part, kept: Mapping[str, list[int]], inputs: int) -> torch.Tensor:
    """The columns of the output projection, of so many, that read the units that stay."""
    group = part.groups[MLP if MLP in part.groups else HEADS]
    width = inputs // group.units
    return (torch.tensor(kept[group.name])[:, None] * width + torch.arange(width)).flatten()


def fill(small: nn.Module, wide: nn.Module, groups: Sequence[Group], kept: Mapping[str, list[int]]) -> None:
    """Give a layer the slices of another one that stay, as float32 parameters.

    Args:
        small: The layer to fill.
        wide: The layer to take from.
        groups: The groups of this layer.
        kept: {group name: indices of the units that stay}.
    """
    parameters = {name: p.detach() for name, p in wide.named_parameters()}
    full = {m.parameter: inside(m.parameter) for group in groups for m in group.members}
    shapes = {name: tuple(parameters[own].shape) for name, own in full.items()}
    positions = {full[name]: axes for name, axes in kept_positions(groups, kept, shapes).items()}
    for name, tensor in parameters.items():
        for axis, index in positions.get(name, {}).items():
            tensor = tensor.index_select(axis, index.to(tensor.device))
        place(small, name, tensor.clone())


class Work:
    """The two streams at one layer, and the regressions between them.

    Args:
        dense: The dense layer.
        pruned: The hidden states that enter the pruned layer, for each batch.
        tokens: The calibration batches.
        basis: P [hidden_size, new hidden_size], which turns a dense stream into a pruned one; None where both have one
            width.
    """

    def __init__(self, dense: Layer, pruned: list[torch.Tensor], tokens: Tokens, basis: torch.Tensor | None) -> None:
        self.dense, self.pruned, self.tokens = dense, pruned, tokens
        self.basis = None if basis is None else basis.to(dense.device)
        # of the dense layer's MLP and attention, for each batch
        self.mlp_inputs: list[torch.Tensor] = []
        self.attention_outputs: list[torch.Tensor] = []

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the layer is kept in."""
        return next(self.dense.module.parameters()).dtype

    def run_dense(self, attention: Part, mlp: Part) -> None:
        """Run the dense layer, once for all regressions: what enters its MLP and what o_proj gives are recorded.

        Args:
            attention: The layer's attention.
            mlp: Its MLP.
        """
        module = self.dense.module
        with Hooks() as hooks:
            for observe, name, record in (
                (hooks.on_input, mlp.input_projections[0], self.mlp_inputs),
                (hooks.on_output, attention.output_projection, self.attention_outputs),
            ):
                observe(module.get_submodule(name), partial(_record, record))
            self.dense.run()

    def here(self, stream: torch.Tensor) -> torch.Tensor:
        """Return hidden states in float32, on the layer's device."""
        return stream.to(self.dense.device).float()

    def toward(self, stream: torch.Tensor) -> torch.Tensor:
        """Return the pruned stream that a dense stream asks for, in float32."""
        return self.here(stream) if self.basis is None else self.here(stream) @ self.basis

    def block(self, module: nn.Module) -> Block:
        """Return the error of a layer as a block to optimise: of the stream behind it, each token weighted."""
        return Block(module, partial(self._error, module, self.weights), self.tokens.held)

    def relative_error(self, module: nn.Module) -> float:
        """Return the mean over held-out tokens of the squared error behind a layer, relative to the token's energy."""
        return held_error(Block(module, partial(self._error, module, self._one_over_energy), self.tokens.held))

    def _error(self, module: nn.Module, weights: Callable[[int], torch.Tensor], batch: int) -> torch.Tensor:
        difference = self.run(module, batch)().float() - self.toward(self.dense.outputs[batch])
        return (difference.square().mean(-1) * weights(batch)).mean()

    def _one_over_energy(self, batch: int) -> torch.Tensor:
        energy = self.here(self.dense.outputs[batch]).square().mean(-1)
        return 1 / energy.clamp_min(least_energy(energy))

    def dense_run(self, batch: int):
        """Return a function that runs the dense layer on a batch."""
        return lambda: self.dense.call(batch, self.dense.stream[batch])

    def run(self, module: nn.Module, batch: int):
        """Return a function that runs a pruned layer on a batch."""
        arguments, options = self.dense.arguments[batch]
        return lambda: module(self.here(self.pruned[batch]), *arguments, **options)

    def push(self, module: nn.Module, stream: list[torch.Tensor]) -> None:
        """Fill a stream with the output of a layer, batch by batch: no two streams more than there have to be.

        Args:
            module: The layer, which is run on the pruned stream.
            stream: Hidden states for each batch; each is replaced.

        Raises:
            RunError: An output is not finite.
        """
        for batch, hidden in enumerate(stream):
            output = self.run(module, batch)().to(hidden.dtype)
            if not torch.isfinite(output).all():
                raise not_finite(f"layer {self.dense.index}, reconstructed, gives NaN or Inf", hidden.dtype)
            stream[batch] = offloaded(output)

    def weights(self, batch: int) -> torch.Tensor:
        """Return the weights of a batch's tokens, [prompts, tokens]: errors relative to the dense stream count."""
        streams = self.dense.stream[batch], self.dense.outputs[batch]
        return token_weights(*(self.here(stream).square().mean(-1) for stream in streams))

    def writes_directly(self, attention: Part, mlp: Part) -> bool:
        """Return whether the outputs of both output projections are added to the stream as they are, without a norm."""
        module = self.dense.module
        projections = [module.get_submodule(part.output_projection) for part in (attention, mlp)]
        _, given, out = watch(self.dense_run(0), outputs=projections, whole=True)
        total = self.here(self.dense.stream[0]) + sum(tensor.float() for tensor in given)
        return bool((total - out.float()).norm() <= 0.02 * out.float().norm())

    def fit_input_projections(self, wide: nn.Module, part: Part) -> dict[str, str]:
        """Fit the input projections of a part towards their output in the dense layer.

        They all read one input x, so that the moments of what they should give, y = W·x_dense, are those of x_dense
        times W: no projection is run.

        Args:
            wide: The layer, in float32; its projections are changed.
            part: Attention or MLP.

        Returns:
            {projection: kind of its fit}.
        """
        own, dense = ([m.get_submodule(n) for n in part.input_projections] for m in (wide, self.dense.module))
        intercept = own[0].bias is not None
        fitted, held_out = (CommonInput(Moments(intercept), Moments(intercept)) for _ in range(2))
        for batch, held in enumerate(self.tokens.held):
            (inputs,), _, _ = watch(self.run(wide, batch), inputs=own[:1])
            (held_out if held else fitted).add(inputs, self._dense_input(dense[0], batch, part))
        kinds: dict[str, str] = {}
        for name, module, theirs in zip(part.input_projections, own, dense, strict=True):
            target = affine(theirs)
            found = fit(fitted.towards(target), held_out.towards(target), affine(module), self.dtype)
            set_affine(module, found.weight)
            kinds[name] = found.kind
        return kinds

    def _dense_input(self, projection: nn.Module, batch: int, part: Part) -> torch.Tensor:
        """What a part's input projections read in the dense layer: in attention it is only a norm away."""
        if MLP in part.groups:
            return self.here(self.mlp_inputs[batch])
        (inputs,), _, _ = watch(self.dense_run(batch), inputs=[projection])
        return inputs

    def output_moments(self, wide: nn.Module, part: Part, last: bool, direct: bool) -> tuple[Moments, Moments]:
        """Return the (fitted, held-out) moments of the input and the target of an output projection.

        Args:
            wide: The layer, in float32.
            part: Attention or MLP.
            last: Whether no other part of the layer adds to the stream behind this one.
            direct: Whether the output is added to the stream as it is.
        """
        projection, dense = (m.get_submodule(part.output_projection) for m in (wide, self.dense.module))
        fitted, held_out = Moments(projection.bias is not None), Moments(projection.bias is not None)
        for batch, held in enumerate(self.tokens.held):
            if direct and last:
                inputs, given, out = watch(self.run(wide, batch), inputs=[projection], outputs=[projection], whole=True)
                target = self.toward(self.dense.outputs[batch]) - (out.float() - given[0].float())
            else:
                inputs, _, _ = watch(self.run(wide, batch), inputs=[projection])
                target = self.toward(self._dense_output(dense, batch, part))
                if direct:
                    target = target + self.toward(self.dense.stream[batch]) - self.here(self.pruned[batch])
            sums = held_out if held else fitted
            sums.add(inputs[0], target, self.weights(batch))
        return fitted, held_out

    def _dense_output(self, projection: nn.Module, batch: int, part: Part) -> torch.Tensor:
        """What a part's output projection gives in the dense layer."""
        if MLP not in part.groups:
            return self.attention_outputs[batch]
        _, (given,), _ = watch(self.dense_run(batch), outputs=[projection])
        return given


def _record(record: list[torch.Tensor], tensor: torch.Tensor) -> None:
    record.append(offloaded(tensor.detach()))
