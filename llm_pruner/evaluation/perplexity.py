"""Perplexity over windows, by the model's own logits, of which as few are held at a time as its class allows."""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from llm_pruner.calibration.layerwise import cause_of_nan
from llm_pruner.calibration.memory import halved, tokens_for
from llm_pruner.console import progress
from llm_pruner.errors import UsageError
from llm_pruner.evaluation.head import body_of, hidden_states, logits_of

# float32 logits held at a time: 128 MiB
LOGITS = 2**25


@torch.no_grad()
def perplexity(model, windows: torch.Tensor, batch_size: int | None = None, label: str = "perplexity") -> float:
    """Measure the perplexity of a model.

    It is exp of the mean over windows of each window's mean next-token loss; infinity where that is too large a number.

    Args:
        model: A causal language model, in evaluation mode.
        windows: LongTensor [n, length].
        batch_size: Windows per forward pass; by default as many as should fit, halved as long as memory runs out.
        label: What the progress bar says.

    Returns:
        The perplexity.

    Raises:
        UsageError: The windows have no next token.
        RunError: Not even one window fits in memory, or the loss is not a number; the message names the first module
            that gives NaN.
    """
    length = windows.shape[1]
    if length < 2 or not len(windows):
        raise UsageError(
            f"{len(windows)} windows of {length} tokens have no next token to predict; windows of at least 2 are "
            "needed: `max_seq_len`, and max_position_embeddings in config.json"
        )
    with progress(total=len(windows), desc=label, unit="window") as bar:
        losses = _Losses(model, windows, label, bar)
        batch = batch_size or max(1, tokens_for(model) // length)
        too_large = f"a window of {length} tokens does not fit in memory; use a smaller `max_seq_len`"
        total = halved(losses.added_up, batch, 2, "{} windows per batch", too_large)
    mean = total / (len(windows) * (length - 1))
    return math.exp(mean) if mean < 700 else math.inf


def bits_per_byte(perplexity: float, bytes_per_token: float) -> float:
    """Return the bits that the model needs for each byte of the text: log₂(perplexity) / bytes per token.

    Unlike perplexity it compares models whose tokenizers cut the text into other tokens.

    Args:
        perplexity: By token.
        bytes_per_token: Bytes of the text, in UTF-8, for each of its tokens.
    """
    return math.log2(perplexity) / bytes_per_token


@dataclass
class _Losses:
    """The summed losses of windows, which are kept where memory runs out."""

    model: Any
    windows: torch.Tensor
    label: str
    bar: Any
    scorer: "Scorer | None" = None
    total: float = 0.0
    done: int = 0

    def added_up(self, batch: int) -> float:
        """Score the windows that are left, so many at a time, and return the sum for all."""
        while self.done < len(self.windows):
            some = self.windows[self.done : self.done + batch]
            self.scorer = self.scorer or Scorer(self.model, self.windows[0])
            loss = self.scorer.summed_loss(some)
            if math.isnan(loss):
                raise cause_of_nan(self.model, some, f"{self.label} is not a number")
            self.total += loss
            self.bar.update(len(some))
            self.done += batch
        return self.total


class Scorer:
    """Sums the next-token losses of windows.

    The losses are computed from hidden states, in chunks of positions, where the model's class lets its logits be made
    so; else from whole logits, a window at a time.
    """

    def __init__(self, model, window: torch.Tensor) -> None:
        """window: LongTensor [length], for the trial; see `body_of`."""
        self.model = model
        self.body, vocabulary = body_of(model, window)
        self.step = max(1, LOGITS // vocabulary)

    def summed_loss(self, windows: torch.Tensor) -> float:
        """Return the sum of the next-token losses of windows.

        Args:
            windows: LongTensor [n, length].

        Returns:
            Σ of the losses, in nats.
        """
        if self.body is None:
            return sum(self._whole(window) for window in windows)
        output = self.body(input_ids=windows.to(self.model.device), use_cache=False)
        hidden = hidden_states(output)[:, :-1]
        hidden, ids = hidden.reshape(1, -1, hidden.shape[-1]), windows[:, :-1].reshape(1, -1).to(self.model.device)
        targets = windows[:, 1:].reshape(-1)
        total = 0.0
        for start in range(0, hidden.shape[1], self.step):
            own = slice(start, start + self.step)
            total += _loss(logits_of(self.model, self.body, output, ids[:, own], hidden[:, own])[0], targets[own])
        return total

    def _whole(self, window: torch.Tensor) -> float:
        logits = self.model(input_ids=window[None].to(self.model.device), use_cache=False).logits[0, :-1]
        return sum(map(_loss, logits.split(self.step), window[1:].split(self.step)))


def _loss(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Σ of the losses of `targets` [n], from [n, vocabulary]."""
    return F.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum").double().item()
