"""Where a text comes from: the built-in one, a data set of the hub, or a file of text or records."""

import bz2
import gzip
import lzma
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from llm_pruner.calibration.records import CHAT, SUFFIXES, Records, as_chat, checked, parsed
from llm_pruner.errors import RunError, UsageError, did_you_mean
from llm_pruner.files import check_regular
from llm_pruner.model.checkpoint_files import POINTER
from llm_pruner.model.demo.text import held_out, training

# what can be scored on
DATASETS = ("wikitext2", "demo")
# what can be calibrated on
CALIBRATION = ("wikitext2", "c4", "alpaca", "instructions", "demo")
C4_SHARD = "en/c4-train.00000-of-01024.json.gz"
# bytes of a text, or characters, from which windows are drawn without tokenising all of it
LARGE = 32 * 2**20
# bytes that tell text from other files
HEAD = 8000
# characters within which a piece of a text begins anew, behind a blank
SEAM = 200
# how compressed files begin, and what reads them
COMPRESSED = {rb"\x1f\x8b": gzip.open, rb"\xfd7zXZ": lzma.open, rb"BZh[1-9]1AY&SY": bz2.open}
DAMAGED = (EOFError, OSError, zlib.error, lzma.LZMAError)
# bytes that a compressed file may hold: a few of them can stand for any number
MOST_UNPACKED = 4 * 2**30
# how files begin that are no UTF-8
OTHERS = {
    b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
    b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip archive", b"\xfd7zXZ": "xz", b"(\xb5/\xfd": "zstd", b"BZh": "bzip2",
    b"%PDF": "PDF", b"PAR1": "Parquet",
}  # fmt: skip


class HubError(RunError):
    """The hub does not give a data set."""


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
    path = path_of(name)
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


def text_of(name: str, what: str = "calibration") -> Prose | Records:
    """Return the text to learn from of a name other than c4.

    wikitext2 is its train split joined with " "; alpaca and instructions are the same records, these as chats of a
    question and its answer.

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
        return checked(_alpaca(what), where)
    if name == "instructions":
        return Records(CHAT, [as_chat(record) for record in checked(_alpaca(what), where).of], where)
    check_name(name, CALIBRATION, what)
    return _file(name, what)


def _alpaca(what: str) -> list[dict]:
    return list(_dataset(_option(what), "yahma/alpaca-cleaned", split="train"))


def c4_documents(option: str = "calibration_data"):
    """Return the documents of one shard of c4's train split."""
    return _dataset(option, "allenai/c4", data_files={"train": C4_SHARD}, split="train")["text"]


def _option(what: str) -> str:
    return {"training": "data", "vocabulary": "vocab_data"}.get(what, "calibration_data")


def path_of(name: str) -> Path:
    """Return the path that a name is, with ~ as the home of its user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        # ~ of nobody
        return Path(name)


def _file(name: str, what: str) -> Prose | Records:
    """What a file of texts holds. A large one of running text stays on the disk."""
    path, where = path_of(name), f"{what} data {name}"
    with _opened(path, where) as file:
        head = file.read(HEAD)
    unpack = next((own for start, own in COMPRESSED.items() if re.match(start, head)), None)
    if unpack:
        return _parsed(_unpacked(unpack, path, where), path.with_suffix(""), where)
    if head.startswith(POINTER):
        raise UsageError(f"{where} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    if not _is_structured(path, head) and path.stat().st_size > LARGE:
        _decoded(head, where, cut=True)
        return Prose(where, path=path)
    return _parsed(_content(path, where), path, where)


def _is_structured(path: Path, head: bytes) -> bool:
    """Whether the name or the beginning of a file says that it holds records."""
    return path.suffix.lower() in SUFFIXES or head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def _parsed(content: bytes, path: Path, where: str) -> Prose | Records:
    text = _decoded(content, where)
    try:
        records = parsed(text, path, where) if _is_structured(path, content[:HEAD]) else None
    except MemoryError as error:
        raise RunError(f"{where} is too large for the memory; give a part of it") from error
    return records or Prose(where, text)


def _opened(path: Path, where: str):
    try:
        return open(path, "rb")
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from error


def _unpacked(unpack, path: Path, where: str) -> bytes:
    """What a compressed file holds."""
    try:
        with _opened(path, where) as packed, unpack(packed) as file:
            content = file.read(MOST_UNPACKED + 1)
    except DAMAGED as error:
        raise UsageError(f"{where} is not a UTF-8 text file: as a compressed one it is damaged ({error})") from error
    except MemoryError as error:
        raise RunError(f"{where} holds more than the memory; give a part of it") from error
    if len(content) > MOST_UNPACKED:
        raise UsageError(f"{where} holds more than {MOST_UNPACKED:,} bytes; unpack it, or give a part of it")
    return content


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
        raise HubError(
            f"{arguments[0]} could not be loaded from the hub ({type(error).__name__}); "
            f"give a text with `{option}=FILE`{none}"
        ) from error
