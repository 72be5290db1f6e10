"""Ratios, numbers of parameters and sizes, as users write them."""

import math
import re
from typing import Any

from llm_pruner.errors import UsageError, shown

# parameters, or bytes
MOST = 2**62
RATIO = "a number with 0 <= ratio < 1, such as 0.5"


def check_ratio(value: Any, name: str) -> float:
    """Return `value` as a ratio, 0 <= ratio < 1.

    Raises:
        UsageError: It is none, with the value and the legal range.
    """
    try:
        ratio = float(value)
    except (TypeError, ValueError):
        ratio = math.nan
    if not 0 <= ratio < 1:
        raise UsageError(f"{name}: {value!r} is not a ratio; it must be {RATIO}")
    return ratio


def parse_parameters(text: str, name: str) -> int:
    """Return the number in `1.2B`, `350M`, `6500k` or a plain number.

    Args:
        text: What was given.
        name: The option or parameter, for the message.

    Raises:
        UsageError: It is something else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMbBgG]?)", text.strip().replace("_", "").replace(",", ""))
    number = float(match[1]) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[match[2].lower()] if match else 0
    if not 0.5 < number < MOST:
        raise UsageError(f"{name}: {shown(text)} is not a number of parameters; write 1.2B, 350M or 6500000")
    return round(number)


def parse_bytes(text: str, name: str) -> int:
    """Return the bytes in `8GB`, `1.5GiB`, `500MB` or a plain number; as `parse_parameters`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?)b?|b)?", text.strip().lower().replace("_", ""))
    if match and match[2]:
        number = float(match[1]) * (1024 if match[3] else 1000) ** ("kmgt".index(match[2]) + 1)
    else:
        number = float(match[1]) if match else 0
    if not 1 <= number < MOST:
        raise UsageError(f"{name}: {shown(text)} is not a size; write 8GB, 1.5GiB or 500MB")
    return int(number)
