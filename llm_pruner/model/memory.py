"""The memory of this process."""

import ctypes
import sys


def give_back() -> None:
    """Give what is free in this process back to the system.

    glibc keeps the memory of tensors below its threshold, 32 MiB at most, for later ones, which seldom fit into it.
    Elsewhere nothing happens.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)
