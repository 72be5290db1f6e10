"""A tokenizer.json as a whole: its tokens, those that have to stay, and the file without the others."""

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_pruner.errors import PlanError, shown
from llm_pruner.files import read_json
from llm_pruner.model.tokenizers import LARGEST
from llm_pruner.vocabulary.pieces import Pieces, pieces_of

NAME = "tokenizer.json"
# a pair of a token and its id, in the older post-processors
PAIRS = ("sep", "cls")


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer.json.

    Attributes:
        raw: Its content.
        pieces: The tokens that text is made of.
        where: The file, for messages.
    """

    raw: Mapping[str, Any]
    pieces: Pieces
    where: str

    @classmethod
    def read(cls, folder: str | Path) -> "TokenizerFile":
        """Read the file in a folder.

        Args:
            folder: Of the tokenizer.

        Raises:
            PlanError: It is not there, or its vocabulary cannot be pruned.
        """
        path = Path(folder, NAME)
        if not path.is_file():
            raise PlanError(f"{folder} has no {NAME}, whose vocabulary could be pruned")
        raw = read_json(path, "the tokenizer's", LARGEST)
        try:
            found = cls(raw, pieces_of(raw["model"]), str(path))
            found._check()
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{path}: its vocabulary is not of a form that is known: {shown(error)}") from error
        return found

    def _check(self) -> None:
        for one in _processors(self.raw.get("post_processor")):
            if one["type"] not in ("ByteLevel", "TemplateProcessing", "RobertaProcessing", "BertProcessing"):
                raise PlanError(f"its post-processor {shown(one['type'])} is not known, and may hold ids of tokens")

    @cached_property
    def added(self) -> dict[str, int]:
        """{added token: its id}; special ones are among them."""
        return {token["content"]: token["id"] for token in self.raw.get("added_tokens") or ()}

    @cached_property
    def tokens(self) -> dict[int, str]:
        """{id: token}, of all tokens."""
        every = {**self.pieces.ids, **self.added}
        return {number: token for token, number in sorted(every.items(), key=lambda item: item[1])}

    @cached_property
    def needed(self) -> frozenset[int]:
        """The tokens that always stay, without what these are made of: the alphabet, and all that were added."""
        named = [number for one in _processors(self.raw.get("post_processor")) for number in _ids_in(one)]
        return frozenset((*self.pieces.needed, *self.added.values(), *named)) & self.tokens.keys()

    def with_parts(self, number: int, there: Set[int] = frozenset()) -> set[int]:
        """Return a token with all tokens that it is made of, so that text is still made into it.

        Args:
            number: Its id.
            there: Ids of tokens that are there with their parts; they are left out.
        """
        own, found, pending = self.pieces.ids, set[int](), [number]
        while pending:
            one = pending.pop()
            if one not in found and one not in there:
                found.add(one)
                pending += [own[part] for part in self.pieces.parts(self.tokens[one]) if part in own]
        return found

    def rewritten(self, new: Mapping[int, int]) -> dict[str, Any]:
        """Return the content without the tokens that go.

        Args:
            new: {old id: new id} of those that stay.
        """
        raw = json.loads(json.dumps(self.raw))
        raw["model"] = self.pieces.rewritten(new)
        raw["added_tokens"] = [{**token, "id": new[token["id"]]} for token in raw.get("added_tokens") or ()]
        for one in _processors(raw.get("post_processor")):
            _renumber(one, new)
        if raw.get("padding"):
            raw["padding"]["pad_id"] = new.get(raw["padding"].get("pad_id"), 0)
        return raw


def _processors(raw: Any) -> list[dict[str, Any]]:
    if not raw:
        return []
    if raw["type"] == "Sequence":
        return [one for inner in raw["processors"] for one in _processors(inner)]
    return [raw]


def _ids_in(processor: Mapping[str, Any]) -> list[int]:
    templates = (processor.get("special_tokens") or {}).values()
    named = [number for one in templates for number in one["ids"]]
    return named + [processor[name][1] for name in PAIRS if name in processor]


def _renumber(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    for one in (processor.get("special_tokens") or {}).values():
        one["ids"] = [new[number] for number in one["ids"]]
    for name in PAIRS:
        if name in processor:
            processor[name] = [processor[name][0], new[processor[name][1]]]
