"""Scores on disk: a second run at another ratio needs no forward pass."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llm_pruner.errors import RunError, UsageError

if TYPE_CHECKING:
    import torch

FORMAT = "llm_pruner.scores/1"
MEAN = "mean/"
BLOCK, BLOCKS = 65_536, 512  # so many blocks of so many bytes, spread over a weight file, tell it from others


def save(path: Path, key: Mapping, scores: "Mapping[str, torch.Tensor]", means: "Mapping[str, torch.Tensor]") -> None:
    """Writes scores by group, and mean inputs by the weight that reads them, with what they were made from."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {**scores, **{MEAN + name: mean.cpu() for name, mean in means.items()}}
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file({name: t.contiguous() for name, t in tensors.items()}, partial, {FORMAT: json.dumps(key)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"the scores cannot be written to {path}: {error}") from error


def load(path: Path, key: Mapping) -> "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]":
    """(scores, means) that `save` wrote. UsageError, with what differs, when they were made from something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})[FORMAT])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UsageError(f"--scores {path} is there and holds no scores of this program") from error
    key = json.loads(json.dumps(key))
    for name in {**found, **key}:
        if found.get(name) != key.get(name):
            raise UsageError(
                f"--scores {path} was made with {name} {found.get(name)}, this run has {key.get(name)}; "
                "name another file, or delete it"
            )
    means = {name.removeprefix(MEAN): t for name, t in tensors.items() if name.startswith(MEAN)}
    return {name: t for name, t in tensors.items() if not name.startswith(MEAN)}, means


def fingerprint(source: str, folder: str | Path) -> str:
    """What tells a checkpoint from others: a hub id with its commit, which is the name of the `folder` it is in; of
    a local folder its config, and of each weight file size and blocks of it: all, up to 32 MiB."""
    if not os.path.isdir(source):
        return f"{source}@{Path(folder).name}"
    digest = hashlib.sha256()
    for path in sorted(Path(folder).glob("*")):
        if path.name == "config.json":
            digest.update(path.read_bytes())
        elif path.suffix in (".safetensors", ".bin"):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with open(path, "rb") as file:
                for start in range(0, size, max(BLOCK, size // BLOCKS)):
                    file.seek(start)
                    digest.update(file.read(BLOCK))
    return digest.hexdigest()[:16]


def text_digest(name: str) -> str:
    """A data set's name as it is; a file's content, shortened."""
    path = Path(name).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else name
