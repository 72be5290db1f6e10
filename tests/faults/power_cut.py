"""The file operations of a run, recorded, and what a disk holds when the power goes at any point of them.

The recorder looks at the whole folder whenever the interpreter is about to open, make, rename or remove something, and
around every fsync; so writes by libraries that are not Python are seen too. An operation is told by what it did: the
same inode under another name is a rename, two that changed places an exchange.

The disk is that of a journalling file system. Operations on names happen in their order, and those up to the last fsync
of a folder that they changed have happened; each later one may or may not have. Of a file's content is sure what it was
at its last fsync: what was written since is there, or is lost.
"""

import hashlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

LOOKED_AT = ("open", "os.", "shutil.", "tempfile.", "ctypes.")  # audit events before which the folder is looked at
SETTLED = 10**8  # ns after which the time of a file's last change tells it from later ones
Entries = dict[int, dict[str, int]]  # folder → name → file or folder, all by number
Content = str | None  # of a file, by its digest; None where nothing of it is sure


@dataclass
class Recording:
    """What was there, and what happened to it.

    steps: ("names", {(folder, name): number or None}), ("content", number, digest), or ("sync", number).
    """

    root: int
    folders: set[int]
    entries: Entries
    contents: dict[int, Content]
    steps: list[tuple] = field(default_factory=list)
    blobs: dict[str, bytes] = field(default_factory=dict)


class Recorder:
    """Records what happens to `folder` in this process from now on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers, self.folders, self.kept = folder, {}, set(), []
        self.busy, self.blobs, self.known = False, {}, {}
        root = self._number(os.stat(folder))
        entries, contents = self._look()
        self.recording = Recording(root, self.folders, entries, contents, blobs=self.blobs)
        self.entries, self.contents = entries, dict(contents)
        plain = os.fsync

        def fsync(descriptor) -> None:
            self.look()
            plain(descriptor)
            self.look()
            number = self._number(os.fstat(descriptor if isinstance(descriptor, int) else descriptor.fileno()))
            if number in self.entries or number in self.contents:
                self.recording.steps.append(("sync", number))

        os.fsync = fsync
        sys.addaudithook(self._heard)

    def _heard(self, name: str, arguments: tuple) -> None:
        reads = name == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if name.startswith(LOOKED_AT) and not reads and not self.busy:
            self.look()

    def look(self) -> None:
        """Notes what has changed since the last look."""
        if self.busy:
            return
        self.busy = True
        try:
            entries, contents = self._look()
            for change in operations(self.entries, entries):
                self.recording.steps.append(("names", change))
            for number, digest in contents.items():
                if self.contents.get(number) != digest:
                    self.recording.steps.append(("content", number, digest))
            self.entries, self.contents = entries, self.contents | contents
        finally:
            self.busy = False

    def _look(self) -> tuple[Entries, dict[int, Content]]:
        entries, contents = {}, {}
        folders = [self.folder]
        while folders:
            folder = folders.pop()
            try:
                inside = {path.name: self._number(path.lstat(), path) for path in sorted(folder.iterdir())}
            except FileNotFoundError:
                continue
            number = self._number(folder.stat())
            self.folders.add(number)
            entries[number] = inside
            for name, number in inside.items():
                if stat.S_ISDIR((folder / name).lstat().st_mode):
                    folders.append(folder / name)
                else:
                    contents[number] = self._content(folder / name)
        return entries, contents

    def _content(self, path: Path) -> str:
        """The digest of a file. One that was not touched for a while is not read again."""
        found = path.lstat()
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in self.known:
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            digest = digest_of(content)
            self.blobs.setdefault(digest, content)
            if time.time_ns() - found.st_mtime_ns < SETTLED:
                return digest
            self.known[key] = digest
        return self.known[key]

    def _number(self, found: os.stat_result, path: Path | None = None) -> int:
        """The same for the same inode. It is held open, or the next new file would get it."""
        key = (found.st_dev, found.st_ino)
        if key not in self.numbers:
            self.numbers[key] = len(self.numbers)
            if path is not None and not stat.S_ISFIFO(found.st_mode):
                self.kept.append(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | getattr(os, "O_PATH", 0)))
        return self.numbers[key]


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def operations(before: Entries, after: Entries) -> list[dict]:
    """What happened to names between two looks: changes that share a file are one operation, which is whole or not."""
    changes = {}
    for folder in before.keys() | after.keys():
        old, new = before.get(folder, {}), after.get(folder, {})
        if folder not in after:
            continue  # it is gone with what was in it
        for name in old.keys() | new.keys():
            if old.get(name) != new.get(name):
                changes[folder, name] = (old.get(name), new.get(name))
    groups: list[tuple[set, dict]] = []
    for place, (old, new) in sorted(changes.items(), key=lambda one: (one[1][1] is None, one[0])):
        numbers, group = {old, new} - {None}, {place: new}
        for other in [one for one in groups if one[0] & numbers]:
            groups.remove(other)
            numbers, group = numbers | other[0], group | other[1]
        groups.append((numbers, group))
    return [group for _, group in groups]


@dataclass(frozen=True, eq=False)
class Disk:
    """What is there after a power cut. at: the step before which it came."""

    root: int
    entries: Entries
    contents: dict[int, Content]
    at: int
    what: str

    def tree(self, name: str) -> dict[str, Content] | None:
        """{path inside: content, or "folder"} of what is called `name` at the top; None where nothing is."""
        number = self.entries[self.root].get(name)
        if number is None:
            return None
        return dict(self._below(number, "."))

    def _below(self, number: int, path: str) -> Iterator[tuple[str, Content]]:
        if number not in self.entries:
            yield path, self.contents.get(number)
            return
        yield path, "folder"
        for name, inside in self.entries[number].items():
            yield from self._below(inside, f"{path}/{name}")

    def write(self, folder: Path, blobs: dict[str, bytes]) -> None:
        """Makes it in `folder`. A file of which nothing is sure is empty."""
        for name in self.entries[self.root]:
            for path, content in self.tree(name).items():
                there = folder / name / path
                if content == "folder":
                    there.mkdir()
                else:
                    there.write_bytes(blobs.get(content, b""))


def cuts(recording: Recording) -> Iterator[Disk]:
    """Every disk that a power cut can leave, at every point: with all that was written, and with what is sure only."""
    names: list[dict] = []
    written, sure = dict(recording.contents), dict(recording.contents)
    least = 0  # so many operations on names have happened for sure
    seen = set()
    for at, step in enumerate([*recording.steps, ("end",)]):
        for number in range(least, len(names) + 1):
            entries = _applied(recording, names[:number])
            for what, contents in (("all written", written), ("only what is sure", sure)):
                disk = Disk(
                    recording.root, entries, dict(contents), at, f"{what}, {number} of {len(names)} operations on names"
                )
                key = repr([(name, disk.tree(name)) for name in sorted(entries[recording.root])])
                if key not in seen:
                    seen.add(key)
                    yield disk
        kind, *about = step
        if kind == "names":
            names.append(about[0])
        elif kind == "content":
            number, digest = about
            written[number] = digest
            sure.setdefault(number, None)
        elif kind == "sync":
            (number,) = about
            if number in written:
                sure[number] = written[number]
            touching = [i + 1 for i, change in enumerate(names) if any(folder == number for folder, _ in change)]
            least = max([least, *touching])


def _applied(recording: Recording, names: list[dict]) -> Entries:
    """What names there are after so many operations, in folders that can be reached."""
    entries = {folder: dict(recording.entries.get(folder, {})) for folder in recording.folders}
    for change in names:
        for (folder, name), number in change.items():
            if number is None:
                entries[folder].pop(name, None)
            else:
                entries[folder][name] = number
    known = set()

    def reach(number: int) -> None:
        known.add(number)
        for inside in entries.get(number, {}).values():
            reach(inside)

    reach(recording.root)
    return {folder: inside for folder, inside in entries.items() if folder in known}


def final(recording: Recording) -> Disk:
    """What is there at the end, when nothing goes wrong."""
    contents = dict(recording.contents)
    names = []
    for kind, *about in recording.steps:
        if kind == "names":
            names.append(about[0])
        elif kind == "content":
            contents[about[0]] = about[1]
    return Disk(recording.root, _applied(recording, names), contents, len(recording.steps), "the end")


def first(recording: Recording) -> Disk:
    return Disk(recording.root, recording.entries, recording.contents, 0, "the start")
