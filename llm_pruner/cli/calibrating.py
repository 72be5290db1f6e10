"""The calibration text of a pruning run: which, drawn, and completed with what the model writes itself."""

from pathlib import Path

from llm_pruner.calibration.mixtures import SELF, Drawn, asked_texts, told
from llm_pruner.calibration.prompts import draw, written_by
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.calibration.windows import ENOUGH, window_length
from llm_pruner.cli.vocabulary import Origin
from llm_pruner.config.prune import PruneOptions
from llm_pruner.console import log
from llm_pruner.errors import RunError
from llm_pruner.files import checkpoint_digest, key_of
from llm_pruner.methods import Method
from llm_pruner.model.axes import HIDDEN
from llm_pruner.model.families import widths_of
from llm_pruner.output.conditions import Stopwatch


def calibration_of(options: PruneOptions, method: Method, config) -> Calibration:
    """Return which calibration texts are used, and how much of them.

    Args:
        options: Those that they name come first.
        method: Whose usual ones are taken else.
        config: Of the model, whose context may be shorter.

    Raises:
        UsageError: A name is that of nothing.
    """
    usual = method.calibration
    names = asked_texts(options.calibration_data, options.model, usual.data)
    length = window_length(config, options.calibration_seq_len or usual.seq_len)
    return Calibration(names, options.nsamples or usual.nsamples, length)


def windows_drawn(calibration: Calibration, options: PruneOptions, config, tokenizer) -> Drawn:
    """Return windows of all texts but the one that the model writes.

    Args:
        calibration: Which texts.
        options: Of the run.
        config: Of the model.
        tokenizer: Its tokenizer; None where it has none.

    Raises:
        RunError: There is no tokenizer, or no text.
    """
    if tokenizer is None:
        raise RunError(
            f"{options.model} has no tokenizer, so it cannot be calibrated; magnitude and mag_sp need no text"
        )
    drawn = draw(
        calibration.data, calibration.nsamples, calibration.seq_len, options.seed, tokenizer, config.vocab_size,
        replaceable=not options.calibration_data,
    )  # fmt: skip
    if drawn.missing:
        log(f"note: the hub does not give {' and '.join(drawn.missing)}; the model itself writes text in their place")
    return drawn


def completed(drawn: Drawn | None, options: PruneOptions, model, origin: Origin, stopwatch: Stopwatch) -> Drawn | None:
    """Return the windows with those that the model writes, which the work folder keeps.

    Args:
        drawn: The other windows; None where nothing is calibrated.
        options: Of the run.
        model: The dense model.
        origin: Where it is from.
        stopwatch: Takes the time of the writing.
    """
    if drawn is None:
        return None
    cache = None
    if drawn.to_write and options.work_dir:
        own = drawn.tokenizer
        begun = (own.bos_token_id, own.eos_token_id, getattr(own, "chat_template", None))
        digest = checkpoint_digest(origin.source, origin.fetched)
        parts = {"model": digest, "dtype": str(model.dtype), "seed": options.seed}
        parts |= {"vocabulary": origin.tokens.digest} if origin.tokens else {}
        key = key_of(parts | {"windows": drawn.to_write, "length": drawn.seq_len, "begun": begun})
        cache = Path(options.work_dir).expanduser() / f"{SELF}-{key[:16]}.safetensors"
    with stopwatch("data"):
        drawn = written_by(model, drawn, cache)
    lengths, hidden = list(map(len, drawn.prompts)), widths_of(model.config)[HIDDEN]
    texts, tokens = told(drawn.sources), sum(lengths)
    log(f"calibration: {len(lengths)} windows of {max(lengths)} tokens at most, of {texts}, seed {options.seed}")
    if tokens < (enough := ENOUGH * hidden):
        log(f"note: {tokens:,} calibration tokens are few for {hidden:,} hidden channels; use {enough:,} or more")
    return drawn
