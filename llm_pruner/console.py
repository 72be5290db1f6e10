"""What a run says on the screen: lines on standard output, without tokens; one voice where several processes run."""

import os
import sys
from collections.abc import Sequence

from llm_pruner.errors import redact


def is_main() -> bool:
    """Whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    if is_main():
        print(redact(text), flush=True)


def quiet() -> None:
    """One voice: ours, not that of transformers."""
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    if not sys.stderr.isatty():
        theirs.disable_progress_bar()


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first column to the left, the others to the right."""
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:]))]).rstrip()
        for row in rows
    )
