"""Finished layers of a reconstruction on disk, so that an interrupted one goes on where it was."""

import json
from pathlib import Path

from torch import nn

from llm_pruner.files import write_whole
from llm_pruner.model.surgery import place
from llm_pruner.reconstruction.layer import Outcome


def write_layer(folder: Path, index: int, layer: nn.Module, found: Outcome) -> None:
    """Keep the parameters of a layer, as they are, and what was decided about it in one file.

    Args:
        folder: Of the unfinished work; it is made where it is missing.
        index: The number of the layer.
        layer: The layer.
        found: What was decided.

    Raises:
        OSError: The file cannot be written.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: parameter.detach().contiguous() for name, parameter in layer.named_parameters()}
    metadata = {"found": json.dumps([found.kept, found.fits])}
    write_whole(_path(folder, index), lambda partial: save_file(tensors, partial, metadata=metadata))


def read_layer(folder: Path | None, index: int, layer: nn.Module) -> Outcome | None:
    """Fill a layer with what `write_layer` kept.

    Args:
        folder: Of the unfinished work, if it is kept.
        index: The number of the layer.
        layer: An empty layer of the shape that is wanted.

    Returns:
        What was decided about it; None where nothing was kept, or nothing that fits.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    if not folder or not _path(folder, index).is_file():
        return None
    try:
        tensors = load_file(_path(folder, index))
        with safe_open(_path(folder, index), "pt") as file:
            kept, fits = json.loads(file.metadata()["found"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None
    if {name: p.shape for name, p in layer.named_parameters()} != {name: t.shape for name, t in tensors.items()}:
        return None
    for name, tensor in tensors.items():
        place(layer, name, tensor)
    return Outcome(kept, fits)


def _path(folder: Path, index: int) -> Path:
    return folder / f"layer-{index}.safetensors"
