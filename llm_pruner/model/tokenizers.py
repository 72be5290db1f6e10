"""Tokenizers: loading one, or saying why it cannot be, and carrying its files over to a checkpoint as they are.

Other programs read these files too: what converts to GGUF wants tokenizer.model, which transformers does not write.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_pruner.console import log
from llm_pruner.errors import PrunerError, RunError, UsageError, first_line, is_out_of_disk, is_out_of_memory
from llm_pruner.files import check_regular, read_json, write_text
from llm_pruner.model.checkpoint_files import check_no_pointer
from llm_pruner.validation import (
    Rule,
    check,
    either,
    list_of,
    mapping,
    maybe,
    number,
    text,
)

logger = logging.getLogger(__name__)

# a folder without any of them has no tokenizer
VOCABULARIES = (
    "tokenizer.json", "tekken.json", "vocab.json", "vocab.txt", "*.model", "tokenizer.model.*", "*.tiktoken",
)  # fmt: skip
CONFIG, TEMPLATES = "tokenizer_config.json", "additional_chat_templates"
FILES = (
    *VOCABULARIES, CONFIG, "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.bpe", "bpe.codes",
    "normalizer.json", "chat_template.*", f"{TEMPLATES}/*.jinja",
)  # fmt: skip
# they go with the weights, too
TERMS = ("license*", "licence*", "notice*", "use_policy*", "copying*")
JSON_FILES = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "tekken.json")
# bytes of one of them
LARGEST = 512 * 2**20
LOCAL = ("is_local", "local_files_only", "name_or_path", "_name_or_path", "tokenizer_file", "vocab_file")
PROBE = (
    "  Two blanks,\n\n\ta tab,\r\n    four; it's 3.14159 of 1234567890 – “naïve” café…  \n"
    "Привет, мир! 你好，世界。こんにちは 안녕하세요 مرحبا नमस्ते שלום สวัสดี Γειά ½ x² 👋🏽🚀\u200d🔥\n"
    "def f(x):\n        return x**2  # <s> [INST] </s>\n "
)
# special tokens that are tried
SPECIALS = 64
TOKEN = maybe(either(text, mapping))
FIELDS: dict[str, Rule] = {
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token", "cls_token", "sep_token"), TOKEN),
    "tokenizer_class": maybe(text), "model_max_length": maybe(number(0)), "added_tokens_decoder": maybe(mapping),
    "chat_template": maybe(either(text, mapping, list_of(mapping))),
}  # fmt: skip


def load_tokenizer(folder: str | Path, needed: bool = True) -> Any:
    """Return the tokenizer in `folder`, or None when there is none.

    Args:
        folder: Of the checkpoint.
        needed: Without it, one that cannot be loaded is None too, and a note says why.

    Raises:
        UsageError: A file of it is broken.
        RunError: It takes a package that is not installed.
    """
    try:
        return _loaded(Path(folder))
    except PrunerError as error:
        if needed:
            raise
        log(f"note: {error}; no text is read, so the run goes on, and its files are carried over as they are")
        return None


def _loaded(folder: Path) -> Any:
    vocabularies = [name for name in _names(folder) if _is_any(name, VOCABULARIES)]
    if not vocabularies:
        return None
    for name in _names(folder, FILES):
        check_regular(folder / name, "the tokenizer's")
    if all(name.endswith(".tiktoken") or ".model" in name for name in vocabularies):
        _check_packages(folder / min(vocabularies, key=lambda name: name != "tokenizer.model"))
    _check_json(folder / CONFIG, FIELDS)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except BaseException as error:
        if not _is_failure(error) or is_out_of_memory(error):
            raise
        _diagnose(folder)
        raise UsageError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error


def _is_failure(error: BaseException) -> bool:
    """Whether it is an error of what was called: a panic of the Rust library is no Exception."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _check_packages(file: Path) -> None:
    """RunError, with their names, where packages are missing that read the only vocabulary there is."""
    check_no_pointer(file, UsageError)
    with open(file, "rb") as opened:
        start = opened.read(256)
    if re.match(rb"[A-Za-z0-9+/=]+ \d+\n", start):
        kind, packages = "a tiktoken vocabulary", {"tiktoken": "tiktoken"}
    elif start.startswith(b"\n"):
        # the first field of its protocol buffer
        kind, packages = "a SentencePiece model", {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    else:
        raise UsageError(f"{file} is neither a SentencePiece model nor a tiktoken vocabulary")
    if missing := [name for name, module in packages.items() if not _is_installed(module)]:
        raise RunError(
            f"{file} is {kind} and there is no tokenizer.json: reading it takes {' and '.join(packages)} "
            f"(pip install {' '.join(missing)})"
        )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # the package that it is in
        return False


def _diagnose(folder: Path) -> None:
    """UsageError that names the file which is broken, where one is."""
    for name in JSON_FILES:
        _check_json(folder / name, {})
    path = folder / "tokenizer.json"
    if path.is_file():
        from tokenizers import Tokenizer

        try:
            Tokenizer.from_file(str(path))
        except BaseException as error:
            if not _is_failure(error):
                raise
            raise UsageError(f"{path} is no tokenizer: {first_line(error)}") from error


def _check_json(path: Path, rules: Mapping[str, Rule]) -> None:
    """UsageError when a file that is there is no mapping, or a field of it is not by its rule."""
    if path.is_file():
        check_no_pointer(path, UsageError)
        check(read_json(path, "the tokenizer's", LARGEST), rules, str(path))


def has_tokenizer(folder: str | Path) -> bool:
    """Return whether there is one, be it broken."""
    return any(_is_any(name, VOCABULARIES) for name in _names(Path(folder)))


def _names(folder: Path, patterns: tuple[str, ...] = VOCABULARIES) -> list[str]:
    """The entries of the folder, and of its folder of templates, that are of one of the patterns and no folders."""
    names = sorted(os.listdir(folder))
    if (folder / TEMPLATES).is_dir():
        names += [f"{TEMPLATES}/{name}" for name in sorted(os.listdir(folder / TEMPLATES))]
    return [name for name in names if _is_any(name, patterns) and not (folder / name).is_dir()]


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in patterns)


def carry_over(source: str | Path, target: str | Path, tokenizer: Any = None) -> list[str]:
    """Copy every file of a tokenizer, and the terms of use, byte for byte; call it once config.json is in `target`.

    If what is loaded from `target` then does not give the same tokens for a probe, because its config.json says
    another class, the tokenizer is written anew; a warning says so where that does not help either. Nothing but a full
    disk is a reason to fail: a run of hours is behind it.

    Args:
        source: The folder that the tokenizer was loaded from.
        target: The folder of the checkpoint that is being written.
        tokenizer: What `load_tokenizer` returned; None carries the files over unseen.

    Returns:
        The paths inside `target` of what was written.

    Raises:
        OSError: The disk is full.
    """
    source, target = Path(source), Path(target)
    terms = _copied(source, target, TERMS)
    carried = _copied(source, target, FILES)
    if tokenizer is not None and not (carried and _is_same(tokenizer, target)):
        for name in carried:
            # nothing of transformers reads it beside a tokenizer.json
            if ".model" not in name:
                (target / name).unlink()
        _write_anew(tokenizer, source, target)
    return [*_names(target, FILES), *terms]


def _copied(source: Path, target: Path, patterns: tuple[str, ...]) -> list[str]:
    found = []
    try:
        for name in _names(source, patterns):
            if not (source / name).is_file() or (source / name).stat().st_size > LARGEST:
                continue
            try:
                (target / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, target / name)
            except BaseException:
                (target / name).unlink(missing_ok=True)
                raise
            found.append(name)
    except OSError as error:
        if is_out_of_disk(error):
            raise
        logger.warning("%s cannot be carried over to the checkpoint: %s", error.filename or source, error.strerror)
    return found


def _is_same(tokenizer: Any, folder: Path) -> bool:
    """Whether what is loaded from `folder` gives the tokens that `tokenizer` gives."""
    from transformers import AutoTokenizer

    try:
        return _probed(AutoTokenizer.from_pretrained(folder, trust_remote_code=False), tokenizer) == _probed(
            tokenizer, tokenizer
        )
    except BaseException as error:
        if not _is_failure(error):
            raise
        return False


def _probed(tokenizer: Any, source: Any) -> tuple:
    """What must be alike: the tokens of the probe and of the source's special tokens, and which ones are special."""
    probe = PROBE + " ".join(f"{token} x{token}" for token in source.all_special_tokens[:SPECIALS])
    ids = [tokenizer(probe, add_special_tokens=added, verbose=False)["input_ids"] for added in (True, False)]
    return ids, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id


def _write_anew(tokenizer: Any, source: Path, target: Path) -> None:
    """By `save_pretrained`, without what that says of this machine's folders."""
    try:
        tokenizer.save_pretrained(target)
        own = _config(source)
        written = _config(target)
        kept = {name: value for name, value in written.items() if name not in LOCAL or own.get(name) == value}
        if kept != written:
            write_text(target / CONFIG, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
        if not _is_same(tokenizer, target):
            logger.warning("the tokenizer that is saved gives other tokens than that of %s; use the latter", source)
    except BaseException as error:
        if not _is_failure(error) or is_out_of_disk(error):
            raise
        _copied(source, target, FILES)
        logger.warning("the tokenizer cannot be saved: %s; its files are those of %s", first_line(error), source)


def _config(folder: Path) -> dict:
    try:
        found = read_json(folder / CONFIG, "the tokenizer's")
    except PrunerError:
        return {}
    return found if isinstance(found, dict) else {}
