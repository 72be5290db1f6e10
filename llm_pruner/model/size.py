"""How large a model is."""

from typing import Any, NamedTuple


class Size(NamedTuple):
    """Parameters, tied ones once, and their bytes."""

    parameters: int
    bytes: int


def size_of(model: Any) -> Size:
    """Count a model's parameters."""
    found = [(parameter.numel(), parameter.element_size()) for parameter in model.parameters()]
    return Size(sum(count for count, _ in found), sum(count * size for count, size in found))
