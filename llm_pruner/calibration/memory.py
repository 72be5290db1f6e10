"""How many tokens a forward pass has: so many to begin with, half of them as long as memory runs out."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from llm_pruner.errors import RunError, is_out_of_memory

logger = logging.getLogger(__name__)

# of a forward pass, to begin with
TOKENS = {"cuda": 16_384, "cpu": 4_096}
T = TypeVar("T")


def tokens_for(model: Any) -> int:
    """Return how many tokens a forward pass of a model has to begin with, by the model's device."""
    return TOKENS.get(model.device.type, TOKENS["cpu"])


def halved(run: Callable[[int], T], size: int, least: int, unit: str, too_large: str) -> T:
    """Call a function with a size, and again with half of it as long as memory runs out.

    Args:
        run: Takes the size.
        size: To begin with.
        least: Where memory does not hold less than that either, there is no use in going on.
        unit: What the size counts, with a place for it: "batches of {} tokens".
        too_large: The message of the error.

    Returns:
        What the function returns.

    Raises:
        RunError: Memory does not suffice.
    """
    while True:
        try:
            return run(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size < least:
                raise RunError(too_large) from error
        size //= 2
        logger.warning("out of memory; going on with %s", unit.format(size))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
