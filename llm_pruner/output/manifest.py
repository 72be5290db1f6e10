"""Which files of a folder a run of this program wrote: the only ones that another run may delete.

A checkpoint's report.json lists them with a digest of each. What is not listed, or is no longer what was written, is
somebody else's and stays.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_pruner import validation
from llm_pruner.errors import PrunerError
from llm_pruner.files import fingerprint, read_json

# lists the others, and not itself
REPORT = "report.json"
# by which a page of this program is known
START = "<!DOCTYPE html>\n<!-- llm_pruner -->\n"


def listed(folder: Path, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Return {path inside the folder: digest} of every file there, without those in `but`."""
    return {name: fingerprint(folder / name) for name in entries(folder) if name not in but}


def entries(folder: Path) -> Iterator[str]:
    """Yield the paths inside a folder, with `/`, of all that is no folder, and of empty folders.

    Links are not followed.
    """
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.is_symlink() and any(path.iterdir()):
            yield from (f"{path.name}/{inside}" for inside in entries(path))
        else:
            yield path.name


def is_ours(found: Any) -> bool:
    """Return whether what a JSON file holds is a report of this program, of whatever schema version."""
    versions = found.get("versions") if isinstance(found, dict) else None
    return isinstance(versions, dict) and "llm_pruner" in versions


def of_checkpoint(folder: Path) -> dict[str, str] | None:
    """Return the list in a checkpoint's report.json, of whatever schema version; None where there is none."""
    try:
        report = read_json(folder / REPORT, REPORT)
        validation.check(report, {"files": validation.mapping}, REPORT, required=("files",))
    except PrunerError:
        return None
    return {str(name): str(digest) for name, digest in report["files"].items()}


def foreign(folder: Path, known: Mapping[str, str], but: tuple[str, ...] = ()) -> list[str]:
    """Return the entries of a folder that are not known, or are no longer what they were.

    Args:
        folder: The folder.
        known: {path inside the folder: digest}.
        but: Paths that may be anything.
    """
    return [name for name in entries(folder) if name not in but and not _is(folder / name, known.get(name))]


def is_whole(folder: Path, known: Mapping[str, str]) -> bool:
    """Return whether every known file is there and what it was."""
    return all(_is(folder / name, digest) for name, digest in known.items())


def is_whole_checkpoint(folder: Path) -> bool:
    """Return whether `folder` holds everything that its report.json lists."""
    known = of_checkpoint(folder)
    return known is not None and is_whole(folder, known)


def remove(folder: Path, known: Mapping[str, str], but: tuple[str, ...] = ()) -> list[str]:
    """Remove what is known, and the folder once it is empty.

    Args:
        folder: The folder.
        known: {path inside the folder: digest}; a file that is something else by now stays.
        but: Paths that go whatever they are.

    Returns:
        What is left.
    """
    stays = set(foreign(folder, known, but))
    for name in [name for name in entries(folder) if name not in stays]:
        (folder / name).unlink()
    for path, _, _ in os.walk(folder, topdown=False):
        # it is not empty
        with contextlib.suppress(OSError):
            os.rmdir(path)
    return list(entries(folder)) if folder.exists() else []


def _is(path: Path, digest: str | None) -> bool:
    """Whether the file at `path` is a regular one with that digest."""
    if digest is None or path.is_symlink() or not path.is_file():
        return False
    try:
        return fingerprint(path) == digest
    except OSError:
        return False
