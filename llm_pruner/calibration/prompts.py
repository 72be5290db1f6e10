"""Calibration prompts: windows drawn from each text of a mixture, and mixed."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_pruner.calibration.mixtures import SELF, Drawn, Source, parsed, shared_out
from llm_pruner.calibration.self_written import kept, self_written
from llm_pruner.calibration.texts import HubError
from llm_pruner.calibration.windows import check_amount, check_vocabulary, text_windows
from llm_pruner.errors import UsageError

if TYPE_CHECKING:
    import torch


def draw(
    data: str | Sequence[str], nsamples: int, seq_len: int, seed: int, tokenizer: Any, vocab_size: int | None = None,
    replaceable: bool = False,
) -> Drawn:  # fmt: skip
    """Draw the windows of every text that does not take the model; the same for the same seed.

    Args:
        data: Names of texts with shares, as in `mixtures.parsed`.
        nsamples: Number of windows.
        seq_len: Tokens of each, at most.
        seed: Of the draw, the same for every text.
        tokenizer: The model's.
        vocab_size: How many tokens the model knows; None where that does not matter.
        replaceable: Whether the model may write in place of some of the texts, where the hub does not give them.

    Returns:
        The windows by text.

    Raises:
        UsageError: A text is shorter than one window, or has tokens that the model does not know.
        RunError: The hub does not give a data set.
    """
    sources = parsed(data)
    found: list[list[torch.Tensor] | None] = []
    missing: list[str] = []
    counts = shared_out(nsamples, sources)
    for source, count in zip(sources, counts, strict=True):
        try:
            found.append(None if source.data == SELF else text_windows(source.data, count, seq_len, seed, tokenizer))
        except HubError:
            if not replaceable or len(missing) == len(sources) - 1:
                raise
            missing.append(source.data)
            found.append(None)
    drawn = [own for own in found if own is not None]
    if vocab_size is not None and drawn:
        check_vocabulary(max(int(prompt.max()) for own in drawn for prompt in own), vocab_size)
    to_write = sum(count for count, own in zip(counts, found, strict=True) if own is None)
    check_amount(to_write, seq_len)
    there = [source for source, own in zip(sources, found, strict=True) if own is not None]
    if not to_write:
        return Drawn(tuple(there), tuple(drawn), 0, seq_len, seed, tokenizer)
    rest = sum(source.share for source, own in zip(sources, found, strict=True) if own is None)
    texts = (*there, Source(SELF, rest))
    return Drawn(texts, (*drawn, None), to_write, seq_len, seed, tokenizer, tuple(missing))


def written_by(model: Any, drawn: Drawn, cache: Path | None = None) -> Drawn:
    """Return the same with the windows that were missing.

    Args:
        model: The model, which writes them if there are any.
        drawn: The windows by text.
        cache: A file that keeps them, whose name tells the model and all else that they follow from.

    Raises:
        PrunerError: As in `self_written`.
    """
    if not drawn.to_write:
        return drawn

    def write() -> "list[torch.Tensor]":
        return self_written(model, drawn.tokenizer, drawn.to_write, drawn.seq_len, drawn.seed)

    written = kept(cache, write, drawn.to_write, drawn.seq_len) if cache else write()
    return replace(drawn, windows=tuple(written if own is None else own for own in drawn.windows))


def calibration_prompts(
    data: str | Sequence[str], nsamples: int, seq_len: int, seed: int, tokenizer: Any, vocab_size: int | None = None,
    model: Any = None,
) -> "list[torch.Tensor]":  # fmt: skip
    """Draw calibration prompts of one text or of several; the same for the same seed.

    Args:
        data: A data set, a file, `self` or a mixture; or several, each with a share behind `=` or without.
        nsamples: Number of prompts.
        seq_len: Tokens of each, at most.
        seed: Of the draw.
        tokenizer: The model's.
        vocab_size: How many tokens the model knows; None where that does not matter.
        model: The model, for `self`.

    Returns:
        LongTensors [length].

    Raises:
        UsageError: A text is shorter than one window, has tokens that the model does not know, or takes a model.
        RunError: The hub does not give a data set.
    """
    drawn = draw(data, nsamples, seq_len, seed, tokenizer, vocab_size)
    if drawn.to_write and model is None:
        raise UsageError("the model itself writes the text called self; give `model`")
    return written_by(model, drawn).prompts
