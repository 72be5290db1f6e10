"""Files: read as data and within bounds, written whole or not at all."""

import atexit
import ctypes
import errno
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_pruner.errors import PrunerError, UsageError, shown
from llm_pruner.validation import Rule, check

logger = logging.getLogger(__name__)

# bytes that a file of settings may have: an index or a report of a model of any size has fewer
SMALL = 64 * 2**20
# levels that JSON may be nested in
DEPTH = 64
# of Linux's renameat2
AT_CWD, NO_REPLACE, EXCHANGE = -100, 1, 2
# so many blocks of so many bytes, spread over a file, tell it from others
BLOCK, BLOCKS = 65_536, 512


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of entries, is on the disk.

    Raises:
        OSError: The disk does not take it. A file system without this for folders is no error.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Call `sync` for all that is in the folder, and for itself."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path beside `path`, and rename what it wrote: `path` is old or new, never half.

    Raises:
        OSError: The file cannot be written; what was at `path` is still there.
    """
    partial = partial_of(path)
    try:
        write(partial)
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.absolute().parent)


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically, and return whether that could be done."""
    return _renameat2(one, other, EXCHANGE)


def rename_to_free(one: Path, other: Path) -> None:
    """Rename `one` to `other`, where nothing is.

    Raises:
        OSError: There is something.
    """
    if not _renameat2(one, other, NO_REPLACE):
        if os.path.lexists(other):
            raise FileExistsError(errno.EEXIST, "there is one", str(other))
        os.rename(one, other)


def _renameat2(one: Path, other: Path, how: int) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return renameat2(AT_CWD, os.fsencode(one), AT_CWD, os.fsencode(other), how) == 0


def partial_of(path: Path) -> Path:
    """Return where a file is written before it is renamed to `path`: hidden, of this process, and of a legal length."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]
    return spelled(path.parent) / f".{digest}.{os.getpid()}.partial"


def spelled(path: Path) -> Path:
    """Return `path`, by a link where its name is not UTF-8.

    The libraries that read and write tensors open no such name.
    """
    try:
        str(path).encode("utf-8")
        return path
    except UnicodeEncodeError:
        folder = tempfile.mkdtemp(prefix="llm_pruner-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        link = Path(folder, "link")
        link.symlink_to(path.absolute())
        return link


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_whole`; what UTF-8 does not have (names of files may) becomes `?`."""

    def write(partial: Path) -> None:
        partial.write_text(text, encoding="utf-8", errors="replace")

    write_whole(path, write)


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write JSON as `write_whole`, indented.

    Args:
        path: The file.
        value: What is written.
        default: Gives what is written in place of a value that JSON does not have; None where that is an error.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False, default=default) + "\n")


def check_regular(path: Path, what: str, error: type[PrunerError] = UsageError) -> None:
    """Raise an error unless `path` is a regular file: a pipe would be waited for, and a device never ends.

    Args:
        path: The file.
        what: What it is, for the message: "`plan`", "config.json of the model".
        error: The exception to raise.

    Raises:
        PrunerError: `error`.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as reason:
        raise error(f"{what} {path}: {getattr(reason, 'strerror', None) or reason}") from reason
    if not stat.S_ISREG(mode):
        raise error(f"{what} {path} is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}; a file is wanted")


def read_text(path: Path, what: str, most: int = SMALL, error: type[PrunerError] = UsageError) -> str:
    """Return the text of a file of settings, UTF-8 with or without a byte order mark.

    Args:
        path: The file.
        what: What it is, for the message: "`plan`", "config.json of the model".
        most: So many bytes it may have.
        error: The exception to raise.

    Raises:
        PrunerError: `error`, for a file that is missing, no regular one, too large or not UTF-8.
    """
    check_regular(path, what, error)
    try:
        size = path.stat().st_size
        if size > most:
            raise error(f"{what} {path} has {size:,} bytes; at most {most:,} are read")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as reason:
        raise error(f"{what} {path} is not UTF-8 text: byte {reason.start} is wrong") from reason
    except OSError as reason:
        raise error(f"{what} {path}: {reason.strerror}") from reason


def read_json(
    path: Path, what: str, most: int = SMALL, error: type[PrunerError] = UsageError, unique: bool = False
) -> Any:
    """Return the value in a JSON file.

    Args:
        path: The file.
        what: What it is, for the message.
        most: So many bytes it may have.
        error: The exception to raise.
        unique: Whether no mapping may have a field twice.

    Raises:
        PrunerError: `error`, as of `read_text`, and with the line for what is no JSON or is nested deeper than DEPTH.
    """
    text = read_text(path, what, most, error)
    try:
        value = json.loads(text, object_pairs_hook=_once if unique else None)
        if _deeper_than(value, DEPTH):
            raise RecursionError
    except RecursionError as reason:
        raise error(f"{what} {path} is nested more than {DEPTH} levels deep") from reason
    except ValueError as reason:
        line = f", line {reason.lineno}" if isinstance(reason, json.JSONDecodeError) else ""
        raise error(f"{what} {path}{line} is not JSON: {getattr(reason, 'msg', reason)}") from reason
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{shown(name)} occurs twice")
            seen.add(name)
    return fields


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether lists and mappings are nested in more than so many levels. Goes level by level, not by recursion."""
    level = [value]
    for _ in range(levels):
        level = [inner for one in level if isinstance(one, list | dict) for inner in _inside(one)]
        if not level:
            return False
    return any(isinstance(one, list | dict) for one in level)


def _inside(value: list | dict) -> list:
    return list(value.values()) if isinstance(value, dict) else value


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    """Blocks of a file of so many bytes: all of it, up to 32 MiB."""
    with open(path, "rb") as file:
        for start in range(0, size, max(BLOCK, size // BLOCKS)):
            file.seek(start)
            yield file.read(BLOCK)


def fingerprint(path: Path) -> str:
    """Return a digest of a file's size and of blocks of it: of all of it, up to 32 MiB."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    for block in _blocks(path, size):
        digest.update(block)
    return digest.hexdigest()[:32]


def key_of(parts: Mapping[str, Any]) -> str:
    """Return one hash of all that a run's result is made from: equal parts, equal key.

    Args:
        parts: {name: value}, of values that are JSON; others count by their text.
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def read_state(path: Path, schema: Mapping[str, Rule], version: int = 1) -> dict[str, Any]:
    """Return what an unfinished run left in `path`; {} where there is nothing that can be used.

    A file that is damaged, or of another version, is set aside as `<name>.damaged`, and a warning says so.

    Args:
        path: The file.
        schema: {field: what it may hold}; every field has to be there.
        version: Of the format.
    """
    if not os.path.lexists(path):
        return {}
    try:
        state = read_json(path, "unfinished work")
        check(state, schema, str(path), required=("version", *schema))
        if state["version"] != version:
            raise UsageError(f"unfinished work {path} is of version {state['version']!r}, this one writes {version}")
        return state
    except UsageError as error:
        logger.warning("%s; it is set aside as %s", error, set_aside(path).name)
        return {}


def set_aside(path: Path) -> Path:
    """Rename what is damaged to `<name>.damaged`, or `<name>.damaged-2` …, and return that path."""
    aside, number = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.damaged-{number}")
    os.rename(path, aside)
    return aside


def write_state(path: Path, state: Mapping[str, Any], version: int = 1) -> None:
    """Keep the state of an unfinished run, whole or not at all, for `read_state`.

    Args:
        path: The file.
        state: The fields of its schema.
        version: Of the format.

    Raises:
        OSError: The file cannot be written; what was there is still there.
    """
    write_json(path, {"version": version, **state})


def checkpoint_digest(source: str, folder: str | Path) -> str:
    """Return what tells a checkpoint from others.

    It is of a hub id the id with its commit, which is the name of its folder; of a local folder the digest of its
    config and, for each weight file, of its size and blocks of it: of all, up to 32 MiB.

    Args:
        source: A hub id or a local folder.
        folder: The local folder with the files.
    """
    if not os.path.isdir(source):
        return f"{source}@{Path(folder).name}"
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*")):
        if path.name == "config.json":
            digest.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".bin") and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            for block in _blocks(path, size):
                digest.update(block)
    return digest.hexdigest()[:16]


def text_digest(name: str) -> str:
    """Return a data set's name as it is; a file's content, shortened."""
    path = Path(name).expanduser()
    if not path.is_file():
        return name
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()[:16]
