"""How inputs are damaged: functions that return what changes a folder. Standard library only."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

Change = Callable[[Path], object]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 4943162336\n"
MISSING = object()


def together(*changes: Change) -> Change:
    return lambda folder: [change(folder) for change in changes]


def text(path: str, content: str | bytes) -> Change:
    """The file `path` holds `content`."""

    def change(folder: Path) -> None:
        there = folder / path
        remove(path)(folder)
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content.encode() if isinstance(content, str) else content)

    return change


def remove(path: str) -> Change:
    def change(folder: Path) -> None:
        there = folder / path
        if there.is_symlink() or there.is_file():
            there.unlink()

    return change


def fields(path: str, **values: Any) -> Change:
    """Fields of a JSON file; MISSING takes one away. NaN and Infinity are written as Python writes them."""

    def change(folder: Path) -> None:
        there = folder / path
        found = json.loads(there.read_text(encoding="utf-8")) | values
        found = {name: value for name, value in found.items() if value is not MISSING}
        there.write_text(json.dumps(found), encoding="utf-8")

    return change


def edited(path: str, change: Callable[[Any], Any]) -> Change:
    """A JSON file with `change` made to its value."""

    def changed(folder: Path) -> None:
        there = folder / path
        found = json.loads(there.read_text(encoding="utf-8"))
        there.write_text(json.dumps(change(found)), encoding="utf-8")

    return changed


def cut(path: str, share: float = 0.5) -> Change:
    """The file ends after a share of its bytes."""

    def change(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: int(len(content) * share)])

    return change


def pipe(path: str) -> Change:
    def change(folder: Path) -> None:
        remove(path)(folder)
        os.mkfifo(folder / path)

    return change


def link(path: str, to: str) -> Change:
    def change(folder: Path) -> None:
        remove(path)(folder)
        (folder / path).symlink_to(to)

    return change


def hard_link(path: str, to: str) -> Change:
    return lambda folder: os.link(folder / to, folder / path)


def directory(path: str) -> Change:
    def change(folder: Path) -> None:
        remove(path)(folder)
        (folder / path).mkdir(parents=True)

    return change


def sparse(path: str, size: int) -> Change:
    """A file of so many zeros, which take no room."""

    def change(folder: Path) -> None:
        remove(path)(folder)
        with open(folder / path, "wb") as file:
            file.truncate(size)

    return change


def tensors(change: Callable[[dict], Any], path: str = "model/model.safetensors") -> Change:
    """`change` is made to {name: [dtype, shape, bytes]} of a safetensors file; what it returns, or the mapping."""

    def changed(folder: Path) -> None:
        there = folder / path
        content = there.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        notes = header.pop("__metadata__", None)
        found = {
            name: [one["dtype"], one["shape"], content[8 + size :][slice(*one["data_offsets"])]]
            for name, one in header.items()
        }
        found = change(found) or found
        notes = found.pop("__metadata__", notes)
        header, blobs, start = {"__metadata__": notes} if notes is not None else {}, [], 0
        for name, (dtype, shape, blob) in found.items():
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(blob)]}
            start += len(blob)
            blobs.append(blob)
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        there.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blobs))

    return changed


def numbers(blob: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(blob) // 4}f", blob))


def floats(values: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)
