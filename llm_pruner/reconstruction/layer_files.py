"""Finished layers of a rebuild on disk, so that an interrupted one goes on where it was."""

import json
import os
from pathlib import Path

from torch import nn

Found = tuple[dict[str, list[int]], dict[str, str]]  # kept units by group, kind of fit by projection


def write_layer(folder: Path, index: int, layer: nn.Module, found: Found) -> None:
    """Keeps the parameters of a layer, as they are, and what is known about it: one file, there whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".layer-{index}.{os.getpid()}.partial"
    tensors = {name: parameter.detach().contiguous() for name, parameter in layer.named_parameters()}
    save_file(tensors, partial, metadata={"found": json.dumps(found)})
    os.replace(partial, folder / f"layer-{index}.safetensors")


def read_layer(folder: Path | None, index: int, layer: nn.Module) -> Found | None:
    """Fills `layer` with what `write_layer` kept; None when it kept nothing, or nothing that fits."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = folder and folder / f"layer-{index}.safetensors"
    if not path or not path.is_file():
        return None
    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            kept, fits = json.loads(file.metadata()["found"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    if {name: p.shape for name, p in layer.named_parameters()} != {name: t.shape for name, t in tensors.items()}:
        return None
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(path), leaf, nn.Parameter(tensor))
    return kept, fits
