"""The reconstruction: a smaller model that does what the dense one did, layer by layer and without a training label.

    dense layer, its stream ──► what each projection gave, and the stream behind the layer
                                      │ targets
    pruned stream ──► input projections fitted ──► heads chosen, o_proj fitted ──► input projections fitted ──►
                      neurons chosen, down_proj fitted ──► cut ──► optimised as a whole ──► the next layer's stream
    behind the last: lm_head fitted where it is not tied, the last layer optimised towards the dense model's logits

Input projections aim at what they gave in the dense model; output projections aim at the dense stream, so that they
compensate for what earlier layers lost. The dense model is not changed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_pruner.calibration.layerwise import Layer, offloaded, walk
from llm_pruner.errors import computing
from llm_pruner.model.axes import HIDDEN, Layers
from llm_pruner.model.depth import renumbered
from llm_pruner.model.families import family_of, widths_of
from llm_pruner.model.groups import Group, group_of
from llm_pruner.model.layers import decoder_layers, layer_number
from llm_pruner.model.skeleton import skeleton
from llm_pruner.model.surgery import empty, finish, place
from llm_pruner.reconstruction.block_optimisation import optimise
from llm_pruner.reconstruction.embeddings_and_head import outside, set_end, set_entrance
from llm_pruner.reconstruction.layer import Outcome, Settings, Work, reconstruct_layer
from llm_pruner.reconstruction.layer_files import read_layer, write_layer
from llm_pruner.reconstruction.layers import parts_of
from llm_pruner.reconstruction.logits import divergence, optimise_logits
from llm_pruner.reconstruction.rotation import basis_of, is_layer_norm
from llm_pruner.reconstruction.tokens import Tokens


@dataclass
class Reconstructed:
    """What came of a reconstruction.

    Attributes:
        model: The new model.
        layers: The layers of the dense model that stay.
        kept: {group name: units that stay}.
        fits: Per layer, {projection: kind of its fit}.
        errors: Per layer, the relative squared error of the stream behind it on held-out tokens.
        kl: Mean KL(dense ‖ pruned) per held-out token, in nats.
        dense_stream: The dense model's last hidden states, for each batch.
    """

    model: Any
    layers: Sequence[int]
    kept: dict[str, list[int]] = field(default_factory=dict)
    fits: list[dict[str, str]] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    kl: float = math.nan
    dense_stream: list[torch.Tensor] = field(default_factory=list)

    def settle(self, dense) -> nn.Module:
        """Return the model where the dense one was, which gives up its tensors."""
        devices = [next(decoder_layers(dense)[layer].parameters()).device for layer in self.layers]
        empty(dense)
        for layer, device in zip(decoder_layers(self.model), devices, strict=True):
            layer.to(device)
        self.model = finish(self.model, dense)
        return self.model


@computing("the reconstruction")
@torch.no_grad()
def reconstruct(
    model,
    groups: Sequence[Group],
    after: Layers,
    config,
    tokens: Tokens,
    settings: Settings,
    folder: Path | None = None,
    layers: Sequence[int] | None = None,
) -> Reconstructed:
    """Make the model of `config` do on `tokens` what `model` does, as far as its widths allow.

    `model` stays as it is; tensors that do not change are shared with it, and finished layers wait on the CPU until
    `settle`.

    Args:
        model: The dense model, in evaluation mode.
        groups: Its groups.
        after: The widths of all its layers; those of layers that go are not used.
        config: The configuration of the new model.
        tokens: Calibration batches.
        settings: What is done.
        folder: Finished layers are kept there, and an interrupted reconstruction goes on behind them.
        layers: Those that stay, by default all.

    Raises:
        PlanError: hidden_size is smaller and a rotation cannot give it.
        RunError: Something is not finite, or memory runs out.
    """
    stay = list(range(model.config.num_hidden_layers)) if layers is None else list(layers)
    run = _Reconstruction(model, groups, after, tokens, settings, folder, outer_copy(model, config), stay)
    run.enter()
    for dense in walk(model, tokens.batches, "reconstruct", offload=True):
        run.layer(dense)
    run.end(dense)
    return run.done


def outer_copy(model, config) -> Any:
    """Return a model of `config` with what stands outside the dense one's layers, and empty layers.

    Args:
        model: The dense model, with which the tensors are shared.
        config: The configuration of the new model.
    """
    config._attn_implementation = model.config._attn_implementation
    new = skeleton(config).eval()
    for name, parameter in model.named_parameters():
        if layer_number(name) is None:
            place(new, name, parameter.data, parameter.requires_grad)
    return new


class _Reconstruction:
    """A reconstruction on its way through the layers."""

    def __init__(
        self,
        model,
        groups: Sequence[Group],
        after: Layers,
        tokens: Tokens,
        settings: Settings,
        folder: Path | None,
        new: Any,
        stay: list[int],
    ) -> None:
        self.model, self.groups, self.after, self.tokens = model, groups, after, tokens
        self.settings, self.folder, self.new, self.stay = settings, folder, new, stay
        self.before, self.family = widths_of(model.config), family_of(model.config.model_type)
        self.done = Reconstructed(new, stay)
        # of a smaller stream
        self.basis: torch.Tensor | None = None
        # by which the embeddings of that are multiplied
        self.factor = 1.0
        # the pruned stream
        self.pruned: list[torch.Tensor] = []
        self.last: tuple[Work, nn.Module] | None = None

    def enter(self) -> None:
        """Set the embeddings of a smaller stream."""
        width, before = self.after[0][HIDDEN], self.before[HIDDEN]
        if width == before:
            return
        centred = is_layer_norm(self.model.get_submodule(outside(self.groups)[1].removesuffix(".weight")))
        self.basis = basis_of(self.model, self.tokens.fitted, width, centred)
        self.factor = math.sqrt(before / width) if self.family.scaled_embedding else 1.0
        set_entrance(self.new, self.model, self.groups, self.basis, self.factor)

    def layer(self, dense: Layer) -> None:
        """Run a dense layer, and reconstruct it or leave it out."""
        work = Work(dense, self.pruned or dense.stream, self.tokens, self.basis)
        work.run_dense(*parts_of(self.groups, dense.index))
        if not self.pruned:
            work.pruned = self.pruned = [offloaded(work.toward(own).to(own.dtype)) for own in dense.stream]
        if dense.index not in self.stay:
            return
        small, like = decoder_layers(self.new)[self.stay.index(dense.index)], next(dense.module.parameters())
        found = read_layer(self.folder, dense.index, small)
        if found is None:
            found = self._made(work, small, like)
        small.to(like.device, torch.float32)
        self.done.errors.append(work.relative_error(small))
        # what enters it is wanted once more
        if dense.index == self.stay[-1]:
            work.pruned, self.last = list(self.pruned), (work, small)
        work.push(small, self.pruned)
        self.done.kept |= found.kept
        self.done.fits.append(found.fits)
        small.to("cpu", like.dtype)

    def _made(self, work: Work, small: nn.Module, like: torch.Tensor) -> Outcome:
        dense, settings = work.dense, self.settings
        with computing(f"the reconstruction of layer {dense.index}"):
            found = reconstruct_layer(
                work, small, self.groups, self.before, self.after[dense.index], settings, self.family.norm_offset
            )
            small.to(like.device)
            if settings.epochs:
                optimise(work.block(small), dense.module, settings.epochs, seed=settings.seed)
        # the layers behind compensate for the layer as it will be saved
        small.to(like.dtype)
        if self.folder:
            write_layer(self.folder, dense.index, small, found)
        return found

    def end(self, dense: Layer) -> None:
        """Set what stands behind the last layer, and measure what was reached. dense: the last layer."""
        new, settings, tokens = self.new, self.settings, self.tokens
        set_end(
            new, self.model, self.groups, dense.outputs, self.pruned, tokens.held, self.basis,
            self.family.norm_offset, self.factor, least_squares=settings.least_squares,
        )  # fmt: skip
        new.tie_weights()
        if settings.epochs and settings.logits:
            self._towards_logits(dense)
        hidden = group_of(self.groups, HIDDEN)
        self.done.kept[hidden.name] = list(range(self.after[0][HIDDEN]))
        for name, parameter in self.model.named_parameters():
            if own := renumbered(name, self.stay):
                new.get_parameter(own).requires_grad_(parameter.requires_grad)
        self.done.kl = divergence(self.model, new, tokens, dense.outputs, self.pruned)
        self.done.dense_stream = dense.outputs

    def _towards_logits(self, dense: Layer) -> None:
        assert self.last is not None, "the last layer has been reconstructed"
        work, small = self.last
        like = next(dense.module.parameters())
        small.to(like.device, torch.float32)
        optimise_logits(
            small, lambda batch: work.run(small, batch)(), work.dense.module, (self.model, self.new), self.tokens,
            dense.outputs, self.settings.epochs, self.settings.seed,
        )  # fmt: skip
        work.push(small.to(like.dtype).float(), self.pruned)
        small.to("cpu", like.dtype)
