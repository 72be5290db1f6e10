"""What the end of a model makes of hidden states: how far two models' logits are apart, and a layer fitted to them.

The stream counts every direction alike, the lm_head does not. The last layer has only the logits behind it, so it can
be told what they should be.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llm_pruner.calibration.layerwise import not_finite, replaced_layers
from llm_pruner.errors import computing
from llm_pruner.reconstruction.block_optimisation import Block, optimise
from llm_pruner.reconstruction.tokens import Tokens

STEPS = 0.2  # as large as those towards the stream: the layer is nearly right
LOGITS = 2**26  # that are held at once; with more, some tokens at a time, computed again on the way back


def logits_of(model, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """The model's logits when the last layer's output is `hidden`."""
    hidden = hidden.to(model.get_output_embeddings().weight.device)
    with replaced_layers(model, lambda *_, **__: hidden):
        return model(input_ids=ids.to(model.device), use_cache=False).logits


def optimise_logits(
    layer: nn.Module,
    run: Callable[[int], torch.Tensor],
    like: nn.Module,
    models: tuple[Any, Any],
    tokens: Tokens,
    dense_stream: Sequence[torch.Tensor],
    epochs: int,
    seed: int = 0,
) -> None:
    """Trains the last pruned layer towards the dense model's logits: KL(dense ‖ pruned).

    run(batch): what the layer now gives. like: its dense twin. models: (dense, pruned), the end of the pruned one as it
    will be. dense_stream: what the last dense layer gives, for each batch.
    """

    def of_some(ids: torch.Tensor, hidden: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = logits_of(models[0], ids, hidden)
        return kl(wanted, logits_of(models[1], ids, found)).sum()

    def error(batch: int) -> torch.Tensor:
        ids, hidden = tokens.batches[batch], dense_stream[batch]
        found = run(batch).to(hidden.dtype)
        width = max(1, LOGITS // (len(ids) * models[1].config.vocab_size))
        parts = zip(*(tensor.split(width, dim=1) for tensor in (ids, hidden, found)), strict=True)
        one = of_some if width >= ids.shape[1] else partial(checkpoint, of_some, use_reentrant=False)
        first, *others = (one(*part) for part in parts)
        return sum(others, first) / ids.numel()

    optimise(Block(layer, error, tokens.held), like, epochs, STEPS, seed)


@computing("the logits of a calibration window")
@torch.no_grad()
def divergence(dense, pruned, tokens: Tokens, dense_stream, pruned_stream) -> float:
    """Mean KL(dense ‖ pruned) per held-out token, in nats, from the hidden states behind the last layer of each.

    Infinity where the pruned model's logits are not finite; RunError where the dense one's are not.
    """
    total, count = 0.0, 0
    for batch, held in enumerate(tokens.held):
        for row in range(len(tokens.batches[batch])) if held else ():
            ids = tokens.batches[batch][row : row + 1]
            wanted = logits_of(dense, ids, dense_stream[batch][row : row + 1])
            own = kl(wanted, logits_of(pruned, ids, pruned_stream[batch][row : row + 1])).sum().item()
            if math.isnan(own) and not torch.isfinite(wanted).all():
                raise not_finite("the logits are NaN or Inf on the calibration data", wanted.dtype)
            total += math.inf if math.isnan(own) else own
            count += ids.numel()
    return total / count


def kl(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """KL(wanted ‖ found) of each token, from logits [prompts, tokens, vocab_size]: nats."""
    wanted, found = (logits.float().log_softmax(-1) for logits in (wanted, found.to(wanted.device)))
    return (wanted.exp() * (wanted - found)).sum(-1)
