"""How a tokenizer makes tokens of text: the `model` of a tokenizer.json, and what is left of it without some tokens.

Text whose tokens all stay is cut into the same tokens as before, because

- BPE merges the pair of the lowest rank first. No merge crosses the border of a token of the result, so the merges
  inside are those that make the token of its own characters. With all their results, every merge that was done can
  still be done, and none comes before it that did not before.
- Unigram takes the most probable way to cut the text. Fewer tokens are fewer ways, and that one is still there.
- WordPiece takes the longest token that fits, which is there.

Other text is cut into smaller tokens: bytes, or characters, stay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from llm_pruner.errors import PlanError, shown

# SentencePiece's blank: where it is spelled in bytes, the decoder does not see a blank
BLANK = "\u2581"
BYTES = frozenset(f"<0x{number:02X}>" for number in range(256))


class Pieces(Protocol):
    """The tokens that text is made of, without those that were added later."""

    @property
    def ids(self) -> Mapping[str, int]:
        """{token: its id}."""

    @property
    def needed(self) -> frozenset[int]:
        """Tokens without which some text could not be encoded any more."""

    def parts(self, token: str) -> tuple[str, ...]:
        """Return the tokens that a token is made of at last, none where it is a beginning."""

    def rewritten(self, new: Mapping[int, int]) -> dict[str, Any]:
        """Return the model of a tokenizer.json with the tokens that stay. new: {old id: new id}."""


@dataclass(frozen=True)
class Merges:
    """Byte pair encoding, of bytes or of characters.

    Attributes:
        raw: The model of a tokenizer.json.
        ranks: {pair of tokens: its rank}.
    """

    raw: Mapping[str, Any]
    ranks: Mapping[tuple[str, str], int] = field(repr=False)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Merges":
        """Read the model. PlanError where tokens do not spell what they stand for."""
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if raw.get(name):
                raise PlanError(f"its BPE has {name} ({shown(raw[name])}), and only one without it can be pruned")
        return cls(raw, {_pair(merge): rank for rank, merge in enumerate(raw["merges"])})

    @property
    def ids(self) -> Mapping[str, int]:
        """{token: its id}."""
        return self.raw["vocab"]

    @property
    def needed(self) -> frozenset[int]:
        """Bytes, or characters, and the token of unknown ones."""
        unknown = self.ids.get(self.raw.get("unk_token") or "")
        return _alphabet(self.ids, bool(self.raw.get("byte_fallback"))) | _known(unknown)

    def parts(self, token: str) -> tuple[str, ...]:
        """Return the pair whose merge makes the token of its characters; none where no merges do."""
        symbols = list(token)
        while len(symbols) > 1:
            neighbours = enumerate(zip(symbols, symbols[1:]))
            pairs = [(self.ranks[pair], place) for place, pair in neighbours if pair in self.ranks]
            if not pairs:
                return ()
            if len(symbols) == 2:
                return tuple(symbols)
            place = min(pairs)[1]
            symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
        return ()

    def rewritten(self, new: Mapping[int, int]) -> dict[str, Any]:
        """Return the model with the tokens that stay, and the merges of and to them."""
        vocabulary = _renumbered(self.ids, new)
        merges = [
            merge for merge in self.raw["merges"]
            if all(part in vocabulary for part in (*_pair(merge), "".join(_pair(merge))))
        ]  # fmt: skip
        return {**self.raw, "vocab": vocabulary, "merges": merges}


@dataclass(frozen=True)
class Scored:
    """Unigram: tokens with their log-probabilities.

    Attributes:
        raw: The model of a tokenizer.json.
    """

    raw: Mapping[str, Any]

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """{token: its id}, which is its place."""
        return {token: place for place, (token, _) in enumerate(self.raw["vocab"])}

    @property
    def needed(self) -> frozenset[int]:
        """Bytes or characters, the token of unknown ones, and that of the lowest score: unknown ones score below it."""
        scores = [score for _, score in self.raw["vocab"]]
        least = scores.index(min(scores))
        return _alphabet(self.ids, bool(self.raw.get("byte_fallback"))) | _known(self.raw.get("unk_id"), least)

    def parts(self, token: str) -> tuple[str, ...]:
        """Return none: a token is made of no others."""
        return ()

    def rewritten(self, new: Mapping[int, int]) -> dict[str, Any]:
        """Return the model with the tokens that stay."""
        vocabulary = [entry for place, entry in enumerate(self.raw["vocab"]) if place in new]
        unknown = self.raw.get("unk_id")
        return {**self.raw, "vocab": vocabulary, "unk_id": None if unknown is None else new[unknown]}


@dataclass(frozen=True)
class Longest:
    """WordPiece: the longest token that fits, again and again.

    Attributes:
        raw: The model of a tokenizer.json.
    """

    raw: Mapping[str, Any]

    @property
    def ids(self) -> Mapping[str, int]:
        """{token: its id}."""
        return self.raw["vocab"]

    @property
    def needed(self) -> frozenset[int]:
        """Characters, at the beginning of a word and in it, and the token of unknown words."""
        alphabet = _alphabet(self.ids, False, self.raw.get("continuing_subword_prefix") or "")
        return alphabet | _known(self.ids.get(self.raw.get("unk_token") or ""))

    def parts(self, token: str) -> tuple[str, ...]:
        """Return none: a token is made of no others."""
        return ()

    def rewritten(self, new: Mapping[int, int]) -> dict[str, Any]:
        """Return the model with the tokens that stay."""
        return {**self.raw, "vocab": _renumbered(self.ids, new)}


def pieces_of(raw: Mapping[str, Any]) -> Pieces:
    """Return the model of a tokenizer.json.

    Args:
        raw: Its field `model`.

    Raises:
        PlanError: It is of a kind, or has a feature, whose vocabulary cannot be pruned.
    """
    match raw.get("type"):
        case "BPE":
            return Merges.of(raw)
        case "Unigram":
            return Scored(raw)
        case "WordPiece":
            return Longest(raw)
    raise PlanError(f"its model is {shown(raw.get('type'))}; the vocabularies of BPE, Unigram and WordPiece are pruned")


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """A merge is written as a pair, or in older files as one text."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _alphabet(ids: Mapping[str, int], byte_fallback: bool, prefix: str = "") -> frozenset[int]:
    """Tokens of one byte or character. Where bytes spell any character, ASCII is enough of the latter."""
    any_byte = byte_fallback and ids.keys() >= BYTES
    found = set()
    for token, number in ids.items():
        bare = token.removeprefix(prefix)
        if token in BYTES or len(bare) == 1 and (not any_byte or bare.isascii() or bare == BLANK):
            found.add(number)
    return frozenset(found)


def _known(*ids: int | None) -> frozenset[int]:
    return frozenset(number for number in ids if number is not None)


def _renumbered(ids: Mapping[str, int], new: Mapping[int, int]) -> dict[str, int]:
    return {token: new[number] for token, number in sorted(ids.items(), key=_second) if number in new}


def _second(item: tuple[str, int]) -> int:
    return item[1]
