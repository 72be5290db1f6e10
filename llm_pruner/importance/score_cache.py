"""Scores on disk: a second run at another ratio needs no forward pass."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from llm_pruner.errors import RunError, UsageError, shown
from llm_pruner.files import check_regular, write_whole
from llm_pruner.model.checkpoint_files import FLOATS

if TYPE_CHECKING:
    import torch

FORMAT = "llm_pruner.scores/1"
MEAN = "mean/"


def save(path: Path, key: Mapping, scores: "Mapping[str, torch.Tensor]", means: "Mapping[str, torch.Tensor]") -> None:
    """Write scores and means to a file, with what they were made from.

    Args:
        path: The file.
        key: What they were made from.
        scores: {group name: scores of its units}.
        means: {weight of an output projection: mean of its input [columns]}.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {**scores, **{MEAN + name: mean.cpu() for name, mean in means.items()}}
    values = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        write_whole(path, lambda partial: save_file(values, partial, {FORMAT: json.dumps(key)}))
    except (OSError, SafetensorError) as error:
        raise RunError(f"the scores cannot be written to {path}: {error}") from error


def load(
    path: Path, key: Mapping, lengths: Mapping[str, int], inputs: Mapping[str, int]
) -> "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]":
    """Return (scores, means) that `save` wrote.

    Args:
        path: The file.
        key: What scores of this run would be made from.
        lengths: How many scores each group has.
        inputs: How many inputs each weight has whose mean inputs may be there.

    Raises:
        UsageError: It was made from something else, with what differs, or does not hold such scores.
    """
    from safetensors import SafetensorError, safe_open

    where = f"`scores` {path}"
    check_regular(path, "`scores`")
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})[FORMAT])
            if not isinstance(found, dict):
                raise ValueError(FORMAT)
            _check_key(found, key, where)
            expected = {**lengths, **{MEAN + name: length for name, length in inputs.items()}}
            tensors = {name: _tensor(file, name, expected, where) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise UsageError(f"{where} exists and holds no scores of this program") from error
    means = {name.removeprefix(MEAN): t for name, t in tensors.items() if name.startswith(MEAN)}
    return {name: t for name, t in tensors.items() if not name.startswith(MEAN)}, means


def _check_key(found: Mapping, key: Mapping, where: str) -> None:
    key = json.loads(json.dumps(key))
    for name in {**found, **key}:
        if found.get(name) != key.get(name):
            raise UsageError(
                f"{where} was made with {name} {_plain(found.get(name))}, this run has {_plain(key.get(name))}; "
                "name another file, or delete it"
            )


def _plain(value) -> str:
    return shown(value)[1:-1] if isinstance(value, str) else shown(value)


def _tensor(file, name: str, expected: Mapping[str, int], where: str) -> "torch.Tensor":
    """A tensor of the file. UsageError unless it is one finite number for each of what it is about."""
    told, damaged = file.get_slice(name), "the file is damaged: delete it, or name another"
    if name not in expected:
        raise UsageError(f"{where}: {shown(name)} is no group and no weight of this model; {damaged}")
    if told.get_dtype() not in FLOATS or told.get_shape() != [expected[name]]:
        raise UsageError(
            f"{where}: {name} must be {expected[name]} floating-point numbers, it is {told.get_dtype()} "
            f"{tuple(told.get_shape())}; {damaged}"
        )
    values = file.get_tensor(name).float()
    if not values.isfinite().all():
        raise UsageError(f"{where}: {name} holds NaN or infinity; {damaged}")
    return values
