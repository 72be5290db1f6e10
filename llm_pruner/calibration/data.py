"""From a name or a file to texts, from texts to token windows."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_pruner.calibration.records import (
    ALPACA,
    PROMPT,
    SUFFIXES,
    Records,
    checked,
    parsed,
)
from llm_pruner.errors import RunError, UsageError, did_you_mean, is_out_of_memory, redact
from llm_pruner.files import check_regular, fingerprint
from llm_pruner.model.checkpoint_files import POINTER
from llm_pruner.model.demo.text import held_out, training

if TYPE_CHECKING:
    import torch

# what can be scored on
DATASETS = ("wikitext2", "demo")
# what can be calibrated on
CALIBRATION = ("wikitext2", "c4", "alpaca", "demo")
C4_SHARD = "en/c4-train.00000-of-01024.json.gz"
# bytes of a text, or characters, from which windows are drawn without tokenising all of it
LARGE = 32 * 2**20
# bytes that tell text from other files
HEAD = 8000
# tokens that windows are drawn of
MOST = 2**28
# what a window costs at least, in tokens
LEAST = 64
# characters within which a piece of a text begins anew, behind a blank
SEAM = 200
# of a token, more than most have; so many times more of them are read, if it must be
BYTES, PATIENCE = 8, 256
# how files begin that are no UTF-8
OTHERS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip archive", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"BZh": "bzip2",
    b"%PDF": "PDF", b"PAR1": "Parquet",
}  # fmt: skip


@dataclass(frozen=True)
class Prose:
    """Running text: in memory or, as long as only places of it are looked at, in a large file.

    Attributes:
        where: Its name, for messages.
        text: The text, where it is in memory.
        path: The file, where it is not.
    """

    where: str
    text: str | None = None
    path: Path | None = None

    @property
    def _file(self) -> Path:
        assert self.path is not None, "prose that is not in memory is in a file"
        return self.path

    @property
    def is_large(self) -> bool:
        """Whether only pieces of it are tokenised."""
        return self.text is None or len(self.text) > LARGE

    def __len__(self) -> int:
        """Characters, or bytes in a file."""
        return self._file.stat().st_size if self.text is None else len(self.text)

    def whole(self) -> str:
        """Return all of the text."""
        return _decoded(_content(self._file, self.where), self.where) if self.text is None else self.text

    def piece(self, start: int, size: int) -> str:
        """Return a piece of the text, without the characters, or the word, that are cut at its ends.

        Args:
            start: In characters, or bytes in a file.
            size: Likewise.
        """
        if self.text is None:
            with open(self._file, "rb") as file:
                file.seek(start)
                content = file.read(size)
            place = next((i for i, byte in enumerate(content[:4]) if byte & 0xC0 != 0x80), 0)
            piece = _decoded(content[place:], self.where, start + place, cut=True)
        else:
            piece = self.text[start : start + size]
        blank = next((i for i, letter in enumerate(piece[:SEAM]) if letter.isspace()), 0)
        return piece[blank:] if start else piece


def check_name(name: str, known: tuple[str, ...] = DATASETS, what: str = "evaluation") -> None:
    """Raise a UsageError when `name` is neither a data set nor a regular file.

    Args:
        name: A data set or a file.
        known: The data sets.
        what: What the text is for, for the message.
    """
    if name in known:
        return
    path = _path(name)
    if not os.path.lexists(path):
        raise UsageError(f"{what} data {name!r} is neither a file nor a data set; {did_you_mean(name, known)}")
    check_regular(path, f"{what} data")


def usual_text(*models: str | None, other: str = "wikitext2") -> str:
    """Return the text for models where none is named: the demo model's own, where that is among them.

    Args:
        models: Names of models, as they were given.
        other: The text for any other model.
    """
    return "demo" if "demo" in models else other


def calibration_text(name: str | None, model: str, usual: str = "wikitext2") -> str:
    """Return the name of the calibration text.

    Args:
        name: A data set or a file; None for the usual one.
        model: The name of the model that is calibrated.
        usual: The text that the method was published with.

    Raises:
        UsageError: There is no such data set or file.
    """
    name = name or usual_text(model, other=usual)
    check_name(name, CALIBRATION, "calibration")
    return name


def window_length(config, length: int) -> int:
    """Return how many tokens a window has.

    Args:
        config: The model's configuration: there are no more than it has positions.
        length: How many are asked for.
    """
    return min(length, getattr(config, "max_position_embeddings", None) or length)


def load_text(name: str, tokenizer=None) -> str:
    """Return the evaluation text of a name.

    Args:
        name: A data set, whose test split is read, or a file of text or records.
        tokenizer: Its chat template spells the records of a chat.

    Returns:
        The text.

    Raises:
        UsageError: There is no such data set or file.
        RunError: The hub does not give the data set.
    """
    if name == "demo":
        return held_out()
    if name == "wikitext2":
        return "\n\n".join(_dataset("eval_data", "Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"])
    check_name(name)
    found = _file(name, "evaluation")
    return found.text(tokenizer) if isinstance(found, Records) else found.whole()


def texts(name: str, what: str = "calibration") -> Prose | Records:
    """Return the text to learn from of a name other than c4.

    wikitext2 is its train split joined with " ".

    Args:
        name: A data set or a file.
        what: What the text is for, for messages.

    Returns:
        Running text, or records.

    Raises:
        UsageError: There is no such data set or file.
        RunError: The hub does not give the data set.
    """
    where = f"{what} data {name}"
    if name == "demo":
        return Prose(where, training())
    if name == "wikitext2":
        found = _dataset(_option(what), "Salesforce/wikitext", "wikitext-2-raw-v1", split="train")["text"]
        return Prose(where, " ".join(found))
    if name == "alpaca":
        return checked(list(_dataset(_option(what), "yahma/alpaca-cleaned", split="train")), where)
    check_name(name, CALIBRATION, what)
    return _file(name, what)


def calibration_prompts(
    name: str, nsamples: int, seq_len: int, seed: int, tokenizer, vocab_size: int | None = None
) -> "list[torch.Tensor]":
    """Draw calibration prompts; the same for the same seed.

    Of running text (a text file, records joined by blank lines, or wikitext2's train split joined with " ") they are
    windows at random offsets, which may overlap; of c4 one random window of each of so many random documents that are
    long enough; of Alpaca random prompts without their answers, cut off at seq_len.

    Args:
        name: A data set or a file.
        nsamples: Number of prompts.
        seq_len: Tokens of each, at most.
        seed: Of the draw.
        tokenizer: The model's.
        vocab_size: How many tokens the model knows; None where that does not matter.

    Returns:
        LongTensors [length].

    Raises:
        UsageError: The text is shorter than one window, or has tokens that the model does not know.
        RunError: The hub does not give the data set.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    if name == "c4":
        prompts = _document_windows(c4_documents(), nsamples, seq_len, generator, tokenizer)
    elif isinstance(found := texts(name), Records) and found.kind == ALPACA:
        order = torch.randperm(len(found.of), generator=generator)[:nsamples].tolist()
        prompts = [torch.tensor(_ids(tokenizer, PROMPT.format(**found.of[i]))[:seq_len]) for i in order]
    else:
        prose = Prose(found.where, found.text(tokenizer)) if isinstance(found, Records) else found
        prompts = _windows(prose, nsamples, seq_len, generator, tokenizer)
    if vocab_size is not None:
        check_vocabulary(max(int(prompt.max()) for prompt in prompts), vocab_size)
    return prompts


def _windows(prose: Prose, nsamples: int, seq_len: int, generator, tokenizer) -> "list[torch.Tensor]":
    """Windows at random places of running text. Of a large one, only pieces around these places are tokenised."""
    import torch

    asked = f"nsamples {nsamples:,} × calibration_seq_len {seq_len:,}"
    if nsamples * max(seq_len, LEAST) > MOST:
        raise UsageError(f"{asked} tokens: at most {MOST:,} are drawn; use a smaller one of the two")
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


def c4_documents(option: str = "calibration_data"):
    """Return the documents of one shard of c4's train split."""
    return _dataset(option, "allenai/c4", data_files={"train": C4_SHARD}, split="train")["text"]


def _option(what: str) -> str:
    return {"training": "data", "vocabulary": "vocab_data"}.get(what, "calibration_data")


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


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:
        # ~ of nobody
        return Path(name)


def _file(name: str, what: str) -> Prose | Records:
    """What a file of texts holds. A large one of running text stays on the disk."""
    path, where = _path(name), f"{what} data {name}"
    with _opened(path, where) as file:
        head = file.read(HEAD)
    if head.startswith(POINTER):
        raise UsageError(f"{where} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    structured = path.suffix.lower() in SUFFIXES or head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
    if not structured and path.stat().st_size > LARGE:
        _decoded(head, where, cut=True)
        return Prose(where, path=path)
    text = _decoded(_content(path, where), where)
    try:
        records = parsed(text, path, where) if structured else None
    except MemoryError as error:
        raise RunError(f"{where} is too large for the memory; give a part of it") from error
    return records or Prose(where, text)


def _opened(path: Path, where: str):
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from error


def _content(path: Path, where: str) -> bytes:
    try:
        with _opened(path, where) as file:
            return file.read()
    except (MemoryError, OverflowError) as error:
        size = path.stat().st_size
        raise RunError(f"{where} has {size:,} bytes, more than the memory holds; give a part of it") from error


def _decoded(content: bytes, where: str, start: int = 0, cut: bool = False) -> str:
    """UTF-8, with or without a byte order mark. start: where it is in the file. cut: it may end within a character."""
    nul = content.find(b"\0", 0, HEAD)
    other = next((kind for begin, kind in OTHERS.items() if content.startswith(begin)), None) if not start else None
    if other is None and nul >= 0:
        other = f"byte {start + nul:,} is 0, which is in no text"
    elif other is not None:
        other = f"it looks like {other}"
    try:
        if other is None:
            return content.decode("utf-8" if start else "utf-8-sig")
    except UnicodeDecodeError as error:
        if cut and error.start >= len(content) - 3 and error.reason == "unexpected end of data":
            return content[: error.start].decode("utf-8" if start else "utf-8-sig")
        other = f"byte {start + error.start:,} is 0x{content[error.start]:02x}, as in Latin-1 or in no text"
    except MemoryError as error:
        raise RunError(f"{where} is too large for the memory; give a part of it") from error
    raise UsageError(f"{where} is not a UTF-8 text file: {other}")


def _dataset(option: str, *arguments, **options):
    import datasets

    try:
        return datasets.load_dataset(*arguments, **options)
    except Exception as error:
        none = ", or `eval_data=none`" if option == "eval_data" else ""
        raise RunError(
            f"{arguments[0]} could not be loaded from the hub ({type(error).__name__}); "
            f"give a text with `{option}=FILE`{none}"
        ) from error


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
    return told if name in DATASETS else told | {"digest": fingerprint(_path(name))}


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
