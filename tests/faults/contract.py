"""What a fault is, and the contract that every command keeps in front of it.

An exit code of the allowed ones; one line of error, which names what is wrong, or none; never an internal exception, a
traceback or a wait without end; every file of the user's as it was; outputs that are whole, old or new, and nothing
left over.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

LINE = re.compile(r"^llm-pruner(?: \w+)?: error: ")
INTERNAL = re.compile(r"\b[A-Z]\w*(?:Error|Exception)\b: |--traceback shows where")
LONGEST = 2000  # characters of an error line: a value a megabyte long is not printed back
LARGE = 2**26  # bytes of a file that are compared: what is larger is zeros
LEFTOVER = "*.partial*"
VIOLATIONS = ("exit code", "error line", "words", "internal exception", "traceback", "hang", "lost file", "leftover",
              "half-written")  # fmt: skip


@dataclass(frozen=True)
class Event:
    """Something that happens to the process when it raises the audit event `when` ("name:pattern of an argument", or
    several with | between them) for the nth time: a signal sent to it, or files written."""

    when: str
    signal: str | None = None
    write: Mapping[str, str] = field(default_factory=dict)
    nth: int = 1


@dataclass(frozen=True)
class Fault:
    """One input of the suite.

    kind, name: the row of the summary it counts in, and its own name. command: as it is typed, after `llm_pruner`.
    needs: what is there before, of stock.py. change: what is done to it, in the folder where the command runs.
    codes: the exit codes that are allowed. words: what the error line must contain, if there is one. writes: patterns
    of the paths that a run may make or change. targets: folders that must be whole. keeps: contents that must be in
    some file afterwards. events, streams, limits, environment: what happens to the process, see process.py. fresh: it
    is no fork. silent: nobody hears what it prints. killed: it cannot clean up. again: the same command, run once more
    without events, succeeds and leaves nothing over.
    """

    kind: str
    name: str
    command: str | tuple[str, ...]
    change: Callable[[Path], object] | None = None
    codes: tuple[int, ...] = (2,)
    words: tuple[str, ...] = ()
    needs: tuple[str, ...] = ("llama",)
    writes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    streams: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, int] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    fresh: bool = False
    silent: bool = False
    killed: bool = False
    again: bool = False
    seconds: float = 20.0

    @property
    def id(self) -> str:
        return re.sub(r"[^\x21-\x7e]+", "_", f"{self.kind}: {self.name}").replace("[", "(").replace("]", ")")

    @property
    def harmless(self) -> bool:
        return set(self.codes) == {0}


def snapshot(folder: Path) -> dict[str, str]:
    """{path inside the folder: what is there}, without following links or waiting for pipes."""
    found = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(root, name)
            found[os.path.relpath(path, folder)] = _content(path)
    return found


def _content(path: str) -> str:
    mode = os.lstat(path).st_mode
    if stat.S_ISLNK(mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(mode):
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            return f"{size} {hashlib.sha256(file.read(LARGE)).hexdigest()}"
    return "folder" if stat.S_ISDIR(mode) else "special"


def broken(fault: Fault, code: int | None, out: str, err: str, before: dict, folder: Path) -> dict[str, str]:
    """{violation: what was seen} of the contract; {} where it was kept. code: None when the command was stopped."""
    after, found = snapshot(folder), {}
    lines = [line for line in err.splitlines() if LINE.match(line)]
    if code is None:
        found["hang"] = f"no end within {fault.seconds:g} s"
    elif code not in fault.codes:
        found["exit code"] = f"{code}, not {' or '.join(map(str, fault.codes))}"
    if not fault.silent and code not in (None, -9):
        most_lines = {0: (0,), 129: (0, 1), 143: (0, 1)}.get(code, (1,))
        if len(lines) not in most_lines or any(len(line) > LONGEST for line in lines):
            found["error line"] = f"{len(lines)} error lines of {[len(line) for line in lines]} characters"
        missing = [word for word in fault.words if lines and word not in lines[0]]
        if missing:
            found["words"] = f"the line does not say {missing}"
    if match := INTERNAL.search(f"{out}\n{err}"):
        found["internal exception"] = match.group()
    if "Traceback (most recent call last)" in out + err:
        found["traceback"] = "a traceback was printed"
    if lost := [path for path in before if after.get(path) != before[path] and not _declared(path, fault.writes)]:
        found["lost file"] = ", ".join(lost[:5])
    if lost := [text for text in fault.keeps if not _somewhere(text, folder)]:
        found["lost file"] = f"nowhere any more: {lost}"
    new = [path for path in after if path not in before and not _declared(path, fault.writes)]
    new += [path for path in after if path not in before and fnmatch(path, LEFTOVER)]
    if new and not (fault.killed and all(".partial" in path for path in new)):
        found["leftover"] = ", ".join(dict.fromkeys(new[:5]))
    for target in fault.targets:
        unchanged = _below(target, after) == _below(target, before)
        if not unchanged and (why := not_whole(folder / target)):
            found["half-written"] = f"{target}: {why}"
    return found


def _declared(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path is one of the patterns, inside one, or a folder on the way to one."""
    parts = path.split("/")
    ways = ["/".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatch(way, pattern) for way in ways for pattern in patterns) or any(
        pattern.startswith(f"{path}/") for pattern in patterns
    )


def _below(target: str, found: dict[str, str]) -> dict[str, str]:
    return {path: what for path, what in found.items() if path == target or path.startswith(f"{target}/")}


def _somewhere(text: str, folder: Path) -> bool:
    wanted = text.encode()
    return any(
        wanted in path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 10**5
    )


def not_whole(folder: Path) -> str | None:
    """Why a folder is no whole checkpoint, as far as its files tell; None where it is one."""
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        weights = sorted(folder.glob("model*.safetensors"))
        if not weights:
            return "it holds no weights"
        for path in weights:
            size = int.from_bytes(path.read_bytes()[:8], "little")
            header = json.loads(path.read_bytes()[8 : 8 + size])
            ends = [one["data_offsets"][1] for name, one in header.items() if name != "__metadata__"]
            if path.stat().st_size != 8 + size + max(ends):
                return f"{path.name} is truncated"
        listed = report.get("files") if isinstance(report, dict) else None
        if missing := [name for name in listed or () if not (folder / name).is_file()]:
            return f"{missing[0]} is missing"
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    return None
