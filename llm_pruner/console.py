"""What a run says on the console: lines on standard output, without tokens; one voice where several processes run.

Nothing here fails: what cannot be encoded is escaped, and where nobody listens any more, lines are lost and no work.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from llm_pruner.errors import redact

# seconds between two states of a progress bar, on a terminal and in a log file
LIVE, LOGGED = 0.2, 10.0


class _Steady:
    """A stream that escapes what its encoding does not have, and goes on into nothing when it breaks."""

    def __init__(self, stream) -> None:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            # a closed pipe, a full disk, a closed file
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:
            return False

    def _give_up(self) -> None:
        """What is still in the buffer goes to the null device too, or the interpreter would fail on it at its end."""
        try:
            number = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def steady() -> None:
    """Make the standard streams ones that cannot fail. A program calls it first of all; repeatable."""
    # or the next file that is opened would get the number, and what libraries print
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        # it was closed when Python started
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, _Steady):
            setattr(sys, name, _Steady(stream))


def is_main() -> bool:
    """Return whether this is the first of the processes that a launcher started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def log(text: str) -> None:
    """Print a line, by the first process only."""
    if is_main():
        print(redact(text), flush=True)


def quiet() -> None:
    """Silence transformers, so that there is one voice, ours."""
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    if not sys.stderr.isatty():
        theirs.disable_progress_bar()


def progress(items: Iterable[Any] | None = None, **named: Any) -> Any:
    """Return a progress bar of tqdm, which goes when it is done.

    It is shown only where the work takes long: on a terminal as it goes, in a log file as a line now and then.

    Args:
        items: What is gone through; None where the caller counts itself.
        named: Fields of tqdm's: desc, unit, total.
    """
    from tqdm.auto import tqdm

    interval = LIVE if sys.stderr.isatty() else LOGGED
    return tqdm(items, delay=2, leave=False, mininterval=interval, **named)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return lines of cells, the first column to the left, the others to the right."""
    sizes = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(sizes[0]), *(cell.rjust(size) for cell, size in zip(row[1:], sizes[1:]))]).rstrip()
        for row in rows
    )
