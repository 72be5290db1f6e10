"""What the end of a model makes of hidden states: how far two models' logits are apart, and a layer fitted to them.

The stream counts every direction alike, the lm_head does not. The last layer has only the logits behind it, so it can
be told what they should be.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from llm_pruner.calibration.layerwise import not_finite, replaced_layers
from llm_pruner.errors import computing
from llm_pruner.model.divergence import kl
from llm_pruner.reconstruction.block_optimisation import Block, optimise
from llm_pruner.reconstruction.tokens import Tokens

# as large as those towards the stream: the layer is nearly right
STEPS = 0.2
# that are held at once, 128 MiB in float32: those of all tokens would be more than all that comes before them
LOGITS = 2**25


def logits_of(model, ids: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Return the logits of a model for hidden states in place of its last layer's output.

    Args:
        model: In evaluation mode.
        ids: LongTensor [prompts, length].
        hidden: [prompts, length, hidden_size].

    Returns:
        [prompts, length, vocab_size].
    """
    hidden = hidden.to(model.get_output_embeddings().weight.device)
    with replaced_layers(model, lambda *_, **__: hidden):
        return model(input_ids=ids.to(model.device), use_cache=False).logits


def pieces(vocab_size: int, ids: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield a few tokens at a time of several tensors, as many as logits of them are held at once.

    Args:
        vocab_size: Logits of a token.
        ids: LongTensor [prompts, length].
        others: [prompts, length, ...].
    """
    width = max(1, LOGITS // (len(ids) * vocab_size))
    return zip(*(tensor.split(width, dim=1) for tensor in (ids, *others)), strict=True)


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
    """Train the last pruned layer towards the dense model's logits: KL(dense ‖ pruned).

    Args:
        layer: The layer, in float32.
        run: Returns the layer's output for the number of a batch.
        like: The dense layer.
        models: The dense and the pruned model, the end of the pruned one as it will be.
        tokens: The calibration batches.
        dense_stream: The output of the last dense layer, for each batch.
        epochs: Passes over the fitted batches.
        seed: Of their order.
    """

    def of_some(ids: torch.Tensor, hidden: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = logits_of(models[0], ids, hidden)
        return kl(wanted, logits_of(models[1], ids, found)).sum()

    def error(batch: int) -> torch.Tensor:
        ids, hidden = tokens.batches[batch], dense_stream[batch]
        found = run(batch).to(hidden.dtype)
        parts = list(pieces(models[1].config.vocab_size, ids, hidden, found))
        # of several pieces, logits are computed again on the way back
        one = of_some if len(parts) == 1 else partial(checkpoint, of_some, use_reentrant=False)
        first, *others = (one(*part) for part in parts)
        return sum(others, first) / ids.numel()

    optimise(Block(layer, error, tokens.held), like, epochs, STEPS, seed)


@computing("the logits of a calibration window")
@torch.no_grad()
def divergence(dense, pruned, tokens: Tokens, dense_stream, pruned_stream) -> float:
    """Return the mean KL(dense ‖ pruned) per held-out token, in nats; infinity where pruned logits are not finite.

    Args:
        dense: The dense model.
        pruned: The pruned model.
        tokens: The calibration batches.
        dense_stream: The output of the last dense layer, for each batch.
        pruned_stream: The output of the last pruned layer, for each batch.

    Raises:
        RunError: Logits of the dense model are not finite.
    """
    total, count = 0.0, 0
    for batch, held in enumerate(tokens.held):
        for row in range(len(tokens.batches[batch])) if held else ():
            ids, streams = tokens.batches[batch][row : row + 1], (dense_stream[batch], pruned_stream[batch])
            total += distance(dense, pruned, ids, *(stream[row : row + 1] for stream in streams))
            count += ids.numel()
    return total / count


@torch.no_grad()
def distance(dense, pruned, ids: torch.Tensor, wanted: torch.Tensor, found: torch.Tensor) -> float:
    """Return KL(dense ‖ pruned), summed over some tokens, in nats; infinity where pruned logits are not finite.

    Args:
        dense: The dense model.
        pruned: The pruned model.
        ids: LongTensor [prompts, length].
        wanted: The dense model's last hidden states, [prompts, length, hidden_size].
        found: The pruned model's.

    Raises:
        RunError: Logits of the dense model are not finite.
    """
    total = 0.0
    for part, own, other in pieces(dense.config.vocab_size, ids, wanted, found):
        logits = logits_of(dense, part, own)
        apart = kl(logits, logits_of(pruned, part, other)).sum().item()
        if math.isnan(apart) and not torch.isfinite(logits).all():
            raise not_finite("the logits are NaN or Inf on the calibration data", logits.dtype)
        total += math.inf if math.isnan(apart) else apart
    return total
