"""From texts to windows: tokenised, cut without overlap to score on, or drawn at random to calibrate on."""

from typing import TYPE_CHECKING

from llm_pruner.calibration.records import ALPACA, PROMPT, Records
from llm_pruner.calibration.texts import DATASETS, Prose, c4_documents, load_text, path_of, text_of
from llm_pruner.errors import UsageError, is_out_of_memory, redact
from llm_pruner.files import fingerprint

if TYPE_CHECKING:
    import torch

# tokens that windows are drawn of
MOST = 2**28
# what a window costs at least, in tokens
LEAST = 64
# tokens for each hidden channel, below which calibration text is little
ENOUGH = 10
# of a token, more than most have; so many times more of them are read, if it must be
BYTES, PATIENCE = 8, 256


def window_length(config, length: int) -> int:
    """Return how many tokens a window has.

    Args:
        config: The model's configuration: there are no more than it has positions.
        length: How many are asked for.
    """
    return min(length, getattr(config, "max_position_embeddings", None) or length)


def text_windows(name: str, nsamples: int, seq_len: int, seed: int, tokenizer) -> "list[torch.Tensor]":
    """Draw windows of one text; the same for the same seed.

    Of running text (a text file, records joined by blank lines, or wikitext2's train split joined with " ") they are
    windows at random offsets, which may overlap; of c4 one random window of each of so many random documents that are
    long enough; of Alpaca random prompts without their answers, cut off at seq_len.

    Args:
        name: A data set or a file.
        nsamples: Number of windows.
        seq_len: Tokens of each, at most.
        seed: Of the draw.
        tokenizer: The model's.

    Returns:
        LongTensors [length].

    Raises:
        UsageError: The text is shorter than one window.
        RunError: The hub does not give the data set.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    if name == "c4":
        return _document_windows(c4_documents(), nsamples, seq_len, generator, tokenizer)
    found = text_of(name)
    if isinstance(found, Records) and found.kind == ALPACA:
        order = torch.randperm(len(found.of), generator=generator)[:nsamples].tolist()
        return [torch.tensor(_ids(tokenizer, PROMPT.format(**found.of[i]))[:seq_len]) for i in order]
    prose = Prose(found.where, found.text(tokenizer)) if isinstance(found, Records) else found
    return _windows(prose, nsamples, seq_len, generator, tokenizer)


def check_amount(nsamples: int, seq_len: int) -> None:
    """Raise a UsageError for more tokens than are drawn.

    Args:
        nsamples: Number of windows.
        seq_len: Tokens of each.
    """
    if nsamples * max(seq_len, LEAST) > MOST:
        raise UsageError(
            f"nsamples {nsamples:,} × calibration_seq_len {seq_len:,} tokens: at most {MOST:,} are drawn; "
            "use a smaller one of the two"
        )


def _windows(prose: Prose, nsamples: int, seq_len: int, generator, tokenizer) -> "list[torch.Tensor]":
    """Windows at random places of running text. Of a large one, only pieces around these places are tokenised."""
    import torch

    check_amount(nsamples, seq_len)
    try:
        if prose.is_large:
            places = torch.randint(len(prose), (nsamples,), generator=generator).tolist()
            return [torch.tensor(_window_at(place, prose, seq_len, tokenizer)) for place in places]
        text, where = unless_blank(prose.whole(), prose.where)
        ids = _ids(tokenizer, text)
        check_enough(len(ids), seq_len, where, "`calibration_seq_len`")
        tokens = torch.tensor(ids)
        offsets = torch.randint(len(ids) - seq_len + 1, (nsamples,), generator=generator).tolist()
        return [tokens[offset : offset + seq_len] for offset in offsets]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        asked = f"nsamples {nsamples:,} × calibration_seq_len {seq_len:,}"
        raise UsageError(f"{asked} tokens of {prose.where} do not fit into the memory; ask for fewer") from error


def _window_at(place: int, prose: Prose, seq_len: int, tokenizer) -> list[int]:
    """seq_len tokens around the character or byte `place`. The first token of the piece, at its seam, is left out."""
    size = BYTES * (seq_len + LEAST)
    most = min(len(prose), PATIENCE * size)
    while True:
        piece = prose.piece(max(0, min(place, len(prose) - size)), size)
        blank = piece.isspace()
        ids = [] if blank else tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"][1:]
        if len(ids) >= seq_len:
            return ids[:seq_len]
        if size >= most:
            found = "only blanks" if blank else _tokens(len(ids))
            raise UsageError(
                f"{prose.where} has {found} in {size:,} bytes around {place:,}, one window needs {seq_len} tokens; "
                "give another text or a smaller `calibration_seq_len`"
            )
        size = min(4 * size, most)


def unless_blank(text: str, where: str) -> tuple[str, str]:
    """Return (the text, what to call it): blanks alone are no text."""
    return ("", f"{where} holds nothing but blanks and") if text.isspace() else (text, where)


def check_enough(found: int, needed: int, where: str, option: str) -> None:
    """Raise a UsageError when a text has too few tokens.

    Args:
        found: How many it has.
        needed: How many are needed.
        where: The text, for the message.
        option: The option that says how many, for the message.
    """
    if found < max(needed, 1):
        raise UsageError(
            f"{where} has {_tokens(found)}, one window needs {needed}; give a longer text or a smaller {option}"
        )


def _tokens(number: int) -> str:
    return f"{number:,} token" if number == 1 else f"{number:,} tokens"


def _document_windows(documents, nsamples: int, seq_len: int, generator, tokenizer):
    import torch

    prompts = []
    for document in torch.randperm(len(documents), generator=generator).tolist():
        ids = _ids(tokenizer, documents[document])
        if len(ids) > seq_len:
            offset = int(torch.randint(len(ids) - seq_len, (1,), generator=generator))
            prompts.append(torch.tensor(ids[offset : offset + seq_len]))
        if len(prompts) == nsamples:
            return prompts
    raise UsageError(
        f"{len(prompts)} calibration documents have more than {seq_len} tokens, {nsamples} are needed; "
        "use a smaller `nsamples` or `calibration_seq_len`"
    )


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, verbose=False)["input_ids"]


def check_vocabulary(highest: int, vocab_size: int) -> None:
    """Raise a UsageError when a token is beyond the vocabulary of the model.

    Args:
        highest: The largest token id.
        vocab_size: How many tokens the model knows.
    """
    if highest >= vocab_size:
        raise UsageError(
            f"the tokenizer gives token {highest}, the model knows {vocab_size}; they do not belong together"
        )


def evaluation_windows(name: str, tokenizer, config, max_seq_len: int) -> "torch.Tensor":
    """Return the windows of an evaluation text.

    Args:
        name: A data set or a file.
        tokenizer: The model's.
        config: The model's, for its number of positions and its vocabulary.
        max_seq_len: Tokens of a window, at most as many as the model has positions for.

    Returns:
        LongTensor [n, length].

    Raises:
        UsageError: As in `load_text` and `token_windows`; RunError likewise.
    """
    config = config.get_text_config()
    length = window_length(config, max_seq_len)
    text = load_text(name, tokenizer)
    return token_windows(text, tokenizer, length, config.vocab_size, f"the evaluation text {name}")


def bytes_per_token(windows: "torch.Tensor", tokenizer) -> float:
    """Return the bytes of a text, in UTF-8, for each of its tokens.

    Args:
        windows: LongTensor [n, length]: the text, one window after the other.
        tokenizer: What they were made by.
    """
    text = tokenizer.decode(windows.flatten().tolist(), clean_up_tokenization_spaces=False)
    return len(text.encode("utf-8", "replace")) / windows.numel()


def described(name: str, windows: "torch.Tensor") -> dict:
    """Return what a report says of the evaluation text: name, windows, and of a file the digest of its content.

    Args:
        name: A data set or a file.
        windows: LongTensor [n, length].
    """
    told = {"data": redact(name), "max_seq_len": windows.shape[1], "windows": len(windows)}
    return told if name in DATASETS else told | {"digest": fingerprint(path_of(name))}


def token_windows(
    text: str, tokenizer, length: int, vocab_size: int | None = None, where: str = "the evaluation text"
) -> "torch.Tensor":
    """Tokenise a text once and cut it into windows without overlap; the remainder is dropped.

    Args:
        text: The text.
        tokenizer: The model's.
        length: Tokens of a window.
        vocab_size: How many tokens the model knows; None where that does not matter.
        where: The text, for messages.

    Returns:
        LongTensor [n, length].

    Raises:
        UsageError: The text is shorter than one window, or has tokens that the model does not know.
    """
    import torch

    text, where = unless_blank(text, where)
    ids = _ids(tokenizer, text)
    check_enough(len(ids), length, where, "`max_seq_len`")
    if vocab_size is not None:
        check_vocabulary(max(ids), vocab_size)
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).view(count, length)
