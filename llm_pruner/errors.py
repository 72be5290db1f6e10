"""What can go wrong, by exit code. Every message is one line: the value, the legal range, what to do."""

import contextlib
import difflib
import errno
import re

# characters of a value, and of a whole message, that are shown
LONG, LINE = 100, 1_000


class PrunerError(Exception):
    """A failure with one clear line for the user; `exit_code` is what the command returns."""

    exit_code = 1


class RunError(PrunerError):
    """Something outside the plan failed: a missing model, a broken file, no memory, no disk."""


class UsageError(PrunerError):
    """The command, the YAML or an input file does not say something that can be done."""

    exit_code = 2


class PlanError(PrunerError):
    """The architecture is not supported, or no legal model has the shape that was asked for."""

    exit_code = 3


class VerificationError(PrunerError):
    """The saved checkpoint does not reload to the model in memory; nothing was published."""

    exit_code = 4


def did_you_mean(word: str, known) -> str:
    """Return a suggestion to append to a message, or the whole list when nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(str(word)[:LONG], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"


def shown(value) -> str:
    """Return a value as a message quotes it: its repr, without the middle where that is long."""
    text = repr(value[: 2 * LONG] if isinstance(value, str | list | tuple) else value)
    return text if len(text) <= LONG else f"{text[: LONG // 2]}…{text[-LONG // 4 :]}"


def shortened(text: str) -> str:
    """Return a message without its middle where it is very long: whatever a file holds may have got into it."""
    return text if len(text) <= LINE else f"{text[: LINE // 2]} … {text[-LINE // 2 :]}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch (either allocator) or Python ran out of memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def is_out_of_disk(error: BaseException) -> bool:
    """Return whether a disk, or a quota, is full; the libraries that write tensors say so in words of their own."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or any(words in str(error).lower() for words in ("no space left", "pytorchstreamwriter failed"))


def redact(text: str) -> str:
    """Return `text` without access tokens: Hugging Face's (`hf_…`) and credentials inside URLs."""
    text = re.sub(r"hf_[A-Za-z0-9]{8,}", "hf_***", text)
    return re.sub(r"(https?://)[^/\s@]+@", r"\1***@", text)


SMALLER = "use a smaller `nsamples` or `calibration_seq_len`, `dtype=bfloat16`, or another `device`"


@contextlib.contextmanager
def computing(what: str, smaller: str = SMALLER):
    """Turn a lack of memory, and equations without a solution, into RunErrors, as long as the context lasts.

    Args:
        what: What is computed, for the message.
        smaller: What helps against a lack of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise RunError(f"{what} does not fit in memory; {smaller}") from error
        # By its name, because importing torch takes seconds; torch.linalg.LinAlgError is called _LinAlgError.
        if type(error).__name__ in ("LinAlgError", "_LinAlgError"):
            raise RunError(
                f"{what}: the numbers are too large, or too far apart, for its equations to be solved; "
                "try `dtype=float32`, or `importance=magnitude`, which has none"
            ) from error
        raise
