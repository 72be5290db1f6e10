"""The files of a tokenizer, written anew for the tokens that stay."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_pruner.console import log
from llm_pruner.errors import PlanError
from llm_pruner.files import read_json, write_text
from llm_pruner.model.tokenizers import CONFIG, PROBE, carry_over, load_tokenizer
from llm_pruner.vocabulary.tokenizer_file import NAME, TokenizerFile

# those beside tokenizer.json that hold tokens or ids; any other vocabulary is left out
ADDED, VOCABULARY, MERGES, LINES = "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt"
OTHERS = (".model", ".tiktoken", "vocab.bpe", "bpe.codes", "tekken.json")
# lines of a text, and characters of each, that are compared
COMPARED, LENGTH = 2_000, 2_000


def whole_file(source: str | Path, tokenizer: Any, folder: Path) -> TokenizerFile:
    """Return the tokenizer.json of a tokenizer, which is written where there is none yet.

    Args:
        source: The folder of the tokenizer.
        tokenizer: The tokenizer.
        folder: A folder to write to, which is made.

    Raises:
        PlanError: The tokenizer is of a kind that has none, or its vocabulary cannot be pruned.
    """
    if not Path(source, NAME).is_file():
        folder.mkdir()
        carry_over(source, folder)
        tokenizer.save_pretrained(folder)
        source = folder
    return TokenizerFile.read(source)


def rewrite(file: TokenizerFile, target: Path, new: Mapping[int, int], config: Any) -> None:
    """Write the files of a tokenizer without the tokens that go.

    Args:
        file: The tokenizer.json, beside which the others are.
        target: A folder, which is made.
        new: {old id: new id} of the tokens that stay.
        config: The configuration of the model of fewer tokens, which the class of the tokenizer is looked up in.
    """
    target.mkdir()
    carried = carry_over(Path(file.where).parent, target)
    config.save_pretrained(target)
    raw = file.rewritten(new)
    _write(target / NAME, raw)
    writers: dict[str, Callable[[Path], None]] = {
        CONFIG: lambda path: _rewrite_config(path, new),
        ADDED: lambda path: _write(path, {token: new[number] for token, number in file.added.items()}),
        VOCABULARY: lambda path: _write(path, raw["model"]["vocab"]),
        MERGES: lambda path: write_text(path, "\n".join(["#version: 0.2", *map(_spelled, raw["model"]["merges"]), ""])),
        LINES: lambda path: write_text(path, "".join(f"{token}\n" for token in raw["model"]["vocab"])),
    }
    for name in carried:
        if name.endswith(OTHERS):
            (target / name).unlink()
            log(f"note: {name} holds the whole vocabulary, and nothing rewrites it, so it is left out")
        elif name in writers:
            writers[name](target / name)


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False, indent=2) + "\n")


def _spelled(merge: str | list[str]) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _rewrite_config(path: Path, new: Mapping[int, int]) -> None:
    values = read_json(path, "the tokenizer's")
    added = values.get("added_tokens_decoder")
    if added:
        values["added_tokens_decoder"] = {
            str(new[int(number)]): token for number, token in added.items() if int(number) in new
        }
        _write(path, values)


def loaded(folder: Path, tokenizer: Any, file: TokenizerFile, new: Mapping[int, int], text: str = "") -> Any:
    """Load the rewritten tokenizer, once it is certain that it cuts text into the tokens that it should.

    Args:
        folder: Where `rewrite` wrote it.
        tokenizer: The tokenizer as it was.
        file: Its tokenizer.json.
        new: {old id: new id} of the tokens that stay.
        text: Some text to compare the two on, beside a probe.

    Raises:
        PlanError: It gives other tokens, or other ids.
    """
    found = load_tokenizer(folder)
    expected = {token: new[number] for number, token in file.tokens.items() if number in new}
    if found.get_vocab() != expected:
        wrong = sorted(set(found.get_vocab().items()) ^ set(expected.items()), key=lambda item: item[1])[0]
        raise PlanError(
            f"{file.where}: the vocabulary cannot be pruned: {type(found).__name__} gives {wrong[0]!r} another id than "
            "the tokenizer.json without the tokens that go"
        )
    for line in (PROBE, *text.splitlines(keepends=True)[:COMPARED]):
        before = tokenizer(line[:LENGTH], verbose=False)["input_ids"]
        if all(number in new for number in before):
            after = found(line[:LENGTH], verbose=False)["input_ids"]
            if after != [new[number] for number in before]:
                raise PlanError(
                    f"{file.where}: the vocabulary cannot be pruned: {type(found).__name__} cuts text whose tokens all "
                    "stay into others"
                )
    return found
