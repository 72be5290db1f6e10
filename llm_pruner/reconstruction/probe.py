"""KL(dense ‖ pruned) of shapes, measured on the dense model with other output projections: nothing is rebuilt.

The projections come from the survey, fitted to the dense model's inputs. A reconstruction, whose layers compensate for
those before them, does better than that, and in much the same order.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from llm_pruner.calibration.layerwise import enter
from llm_pruner.errors import computing
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, Axis, Widths
from llm_pruner.model.layers import decoder_layers
from llm_pruner.reconstruction.layers import affine, set_affine
from llm_pruner.reconstruction.logits import distance
from llm_pruner.reconstruction.survey import Survey

# that a shape is measured on; and a single layer, of which only the order of magnitude is wanted
TOKENS, FEW = 2048, 512
# that so many tokens are of at least: one window may be unlike all others, above all in its first tokens
PROMPTS = 4


class Probe:
    """Measures shapes by a survey's regressions.

    Args:
        model: The dense model, in evaluation mode; it is the same again behind every measurement.
        survey: Of the model, with regressions.
        batches: LongTensors [prompts, length] of held-out text.
        before: The widths of the dense model's layers.
        tokens: How many tokens of the text are used at most, of PROMPTS prompts or more.
    """

    @torch.no_grad()
    def __init__(
        self, model, survey: Survey, batches: Sequence[torch.Tensor], before: Widths, tokens: int = TOKENS
    ) -> None:
        self.model, self.survey, self.before = model, survey, before
        self.layers: Sequence[Any] = list(decoder_layers(model))
        self.prompts = _first([prompt[None] for batch in batches for prompt in batch], tokens)
        # for each prompt what enters each layer, and behind the last
        self.streams: list[list[torch.Tensor]] = []
        self.arguments = []
        for ids in self.prompts:
            hidden, arguments = enter(model, ids)
            stream = [hidden]
            for layer, (rest, options) in zip(self.layers, arguments, strict=True):
                stream.append(layer(stream[-1], *rest, **options))
            self.streams.append(stream)
            self.arguments.append(arguments)

    @computing("measuring a shape")
    @torch.no_grad()
    def kl(self, changed: Mapping[int, Widths], stay: Sequence[int] | None = None) -> float:
        """Return KL(dense ‖ pruned), in nats per token.

        Args:
            changed: {number of a layer: its widths}, of layers whose widths change.
            stay: The layers that stay, None for all.
        """
        stay = range(len(self.layers)) if stay is None else stay
        gone = set(range(len(self.layers))) - set(stay)
        first = min([*changed, *gone], default=len(self.layers))
        hidden = [stream[first] for stream in self.streams]
        for index in range(first, len(self.layers)):
            if index in gone:
                continue
            with self._fitted(index, changed.get(index, self.before)):
                for prompt, own in enumerate(hidden):
                    rest, options = self.arguments[prompt][index]
                    hidden[prompt] = self.layers[index](own, *rest, **options)
        total = 0.0
        for ids, stream, found in zip(self.prompts, self.streams, hidden, strict=True):
            total += distance(self.model, self.model, ids, stream[-1], found)
        return total / sum(ids.numel() for ids in self.prompts)

    @contextlib.contextmanager
    def _fitted(self, index: int, widths: Widths) -> Iterator[None]:
        """A layer whose output projections are fitted to these widths, as long as the context lasts."""
        own = []
        axes: tuple[tuple[Axis, ...], ...] = ((HEADS, KV_HEADS), (MLP,))
        for regression, changing in zip(self.survey.regressions[index], axes, strict=True):
            if any(widths[axis] != self.before[axis] for axis in changing):
                projection = self.layers[index].get_submodule(regression.projection)
                weight = affine(projection)
                own.append((projection, weight.clone()))
                set_affine(projection, regression.weight(weight, widths))
        try:
            yield
        finally:
            for projection, weight in own:
                set_affine(projection, weight)


def _first(prompts: list[torch.Tensor], tokens: int) -> list[torch.Tensor]:
    """The beginnings of the first prompts, as many as have so many tokens."""
    begun = [prompt[:, : max(2, tokens // PROMPTS)] for prompt in prompts]
    return begun[: max(1, tokens // max(prompt.numel() for prompt in begun))]
