"""What a run was done under: seconds by phase, peak memory, versions, and the command as it can be typed again."""

import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llm_pruner._version import __version__
from llm_pruner.errors import redact

PACKAGES = ("torch", "transformers", "torch-pruning", "accelerate", "datasets", "tokenizers")


class Stopwatch:
    """Seconds by phase: `with stopwatch("load"): …`; a phase entered twice adds up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the seconds that the block takes to those of the phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started


def peak_memory() -> dict[str, int]:
    """Return the most memory that this process has held so far, in bytes: `host`, and `device` where there is a GPU."""
    # Only systems like Unix have it; the rest of this module is of use without it.
    import resource

    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["device"] = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
    return peak


def versions() -> dict[str, str]:
    """Return the versions of this package, of Python, and of the packages that results depend on."""
    found = {"llm_pruner": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command(argv: Sequence[str], program: str) -> str:
    """Return the command line as it can be typed again, without tokens."""
    return redact(f"{program} {shlex.join(argv)}".strip())


def conditions(options: Any, seconds: Mapping[str, float], argv: Sequence[str], program: str) -> dict[str, Any]:
    """Return the fields of `reports.Conditions`.

    Args:
        options: The command's, a dataclass with `seed`.
        seconds: By phase.
        argv: The arguments as they were typed, behind `program`.
        program: The command.
    """
    return {
        "seed": options.seed,
        "seconds": {phase: round(value, 3) for phase, value in seconds.items()},
        "peak_memory": peak_memory(),
        "versions": versions(),
        "command": command(argv, program),
        "options": {k: redact(v) if isinstance(v, str) else v for k, v in options.asdict().items()},
    }
