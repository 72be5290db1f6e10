"""What a model loses without one of its parts: the loss on some text with each part silent in turn.

What stands before a layer is the same for all parts inside that layer. One sweep holds what enters a layer, and the
rest of the model runs from there once for each of the layer's parts; no hidden states of other layers are kept, and no
logits.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.calibration.layerwise import cause_of_nan, enter
from llm_pruner.errors import RunError, computing
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP, Axis
from llm_pruner.model.groups import Group, output_projection, units_of
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.surgery import silenced
from llm_pruner.reconstruction.logits import logits_of, pieces


@dataclass(frozen=True, eq=False)
class Part:
    """A part of a decoder layer that can be silent.

    Attributes:
        axis: HEADS for a whole attention, MLP for a whole MLP, KV_HEADS for a kv group with its query heads.
        layer: The number of the layer.
        silence: Returns a context in which the part adds nothing to the residual stream.
        unit: The number of the kv group.
    """

    axis: Axis
    layer: int
    silence: Callable[[], contextlib.AbstractContextManager]
    unit: int | None = None


def whole_parts(model, groups: Iterable[Group], *axes: Axis) -> list[Part]:
    """Return attentions (HEADS) and MLPs (MLP) as parts, layer by layer; a silent one gives zeros, its bias included.

    Args:
        model: The model.
        groups: Its groups.
        axes: HEADS, MLP or both.
    """
    found = []
    for group in groups:
        if group.axis in axes and group.axis in (HEADS, MLP):
            module = model.get_submodule(output_projection(group).parameter.removesuffix(".weight"))
            found.append(Part(group.axis, group.own_layer, partial(_zeros, module)))
    return found


def kv_group_parts(parameters: Mapping[str, torch.Tensor], groups: Iterable[Group]) -> list[Part]:
    """Return the kv groups of all layers as parts, layer by layer.

    Args:
        parameters: {name: parameter} of the model.
        groups: Its groups.
    """
    found = []
    for group in units_of(groups):
        for unit in range(group.units) if group.axis == KV_HEADS else ():
            others = {group.name: group.removed([unit])}
            found.append(Part(KV_HEADS, group.own_layer, partial(silenced, parameters, [group], others), unit))
    return found


@contextlib.contextmanager
def _zeros(module: nn.Module):
    """The module gives zeros, as long as the context lasts."""
    with Hooks() as hooks:
        hooks.on_output(module, torch.zeros_like)
        yield


class Ablation(contextlib.ExitStack):
    """A model that loses one part after the other; in a `with`, at whose end it has them all again.

    Args:
        model: In evaluation mode.
        batches: LongTensors [prompts, length], the text that losses are measured on.
    """

    def __init__(self, model, batches: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.model, self.batches = model, batches
        self.gone: list[Part] = []
        self.losses: list[float] = []
        self._layers = list(decoder_layers(model))
        self._entered = [enter(model, batch) for batch in batches]

    @property
    def tokens(self) -> int:
        """How many tokens are predicted."""
        return sum(batch[:, 1:].numel() for batch in self.batches)

    @property
    def perplexities(self) -> list[float]:
        """The perplexity after each round."""
        return [math.exp(loss) if loss < 700 else math.inf for loss in self.losses]

    def loss(self) -> float:
        """Return the mean next-token loss of the model as it is now, in nats."""
        return self._from(0, [hidden for hidden, _ in self._entered])

    @computing("measuring the model without one of its parts")
    @torch.no_grad()
    def losses_without(self, parts: Sequence[Part]) -> list[float]:
        """Return the mean next-token loss with each of the parts silent, in nats.

        Args:
            parts: Of the model, which is otherwise as it is now.

        Returns:
            A loss for each part; infinity where it is not a number.
        """
        found = [math.inf] * len(parts)
        stream = [hidden for hidden, _ in self._entered]
        for layer in range(max((part.layer for part in parts), default=-1) + 1):
            for place, part in enumerate(parts):
                if part.layer == layer:
                    with part.silence():
                        found[place] = self._from(layer, stream)
            stream = [self._run(layer, batch, hidden) for batch, hidden in enumerate(stream)]
        return [math.inf if math.isnan(loss) else loss for loss in found]

    def remove(self, parts: Sequence[Part], losses: Sequence[float], number: int = 1) -> list[Part]:
        """Silence the parts whose absence costs least, for good, and return them.

        Of equal losses the first goes.

        Args:
            parts: Those to choose from.
            losses: Of `losses_without`.
            number: How many go at once.

        Raises:
            RunError: No loss is finite; the message names the first module that gives NaN.
        """
        order = sorted(range(len(parts)), key=losses.__getitem__)[:number]
        if not math.isfinite(losses[order[0]]):
            raise self._cause()
        for place in order:
            self.enter_context(parts[place].silence())
        self.gone += [parts[place] for place in order]
        self.losses.append(losses[order[0]] if number == 1 else self.loss())
        return [parts[place] for place in order]

    def left(self, parts: Iterable[Part]) -> list[Part]:
        """Return those of the parts that are not gone."""
        return [part for part in parts if part not in self.gone]

    @torch.no_grad()
    def _from(self, layer: int, stream: Sequence[torch.Tensor]) -> float:
        """The mean loss when `stream` enters a layer."""
        total = 0.0
        for batch, hidden in enumerate(stream):
            for later in range(layer, len(self._layers)):
                hidden = self._run(later, batch, hidden)
            total += self._summed(self.batches[batch], hidden)
        return total / self.tokens

    def _run(self, layer: int, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        arguments, options = self._entered[batch][1][layer]
        return self._layers[layer](hidden, *arguments, **options)

    def _summed(self, ids: torch.Tensor, hidden: torch.Tensor) -> float:
        """Σ of the next-token losses of a batch, from float32 logits of some positions at a time."""
        total = 0.0
        for own, targets, states in pieces(self.model.config.vocab_size, ids[:, :-1], ids[:, 1:], hidden[:, :-1]):
            logits = logits_of(self.model, own, states).float()
            targets = targets.flatten().to(logits.device)
            total += F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").double().item()
        return total

    def _cause(self) -> RunError:
        return cause_of_nan(self.model, self.batches[0], "the perplexity without any of the parts that are left")


def first_tokens(prompts: Sequence[torch.Tensor], tokens: int | None) -> list[torch.Tensor]:
    """Return the first prompts that have so many tokens together; all of them for None.

    Args:
        prompts: LongTensors [length].
        tokens: How many tokens.
    """
    found: list[torch.Tensor] = []
    for prompt in prompts:
        if tokens is not None and sum(map(len, found)) >= tokens:
            break
        found.append(prompt)
    return found
