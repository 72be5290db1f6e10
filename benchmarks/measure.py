"""What the benchmarks share: conditions, peak memory, results as JSON beside the script."""

import json
import platform
from pathlib import Path

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def conditions() -> dict:
    """Where a figure was measured."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "device": card or f"CPU, {torch.get_num_threads()} threads, {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def keep(name: str, result: dict) -> None:
    """Prints the result and keeps it as results/<name>.json."""
    result = {**result, "conditions": conditions()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


class HostMemory:
    """Resident memory of this process, in bytes (Linux)."""

    @staticmethod
    def now() -> int:
        return HostMemory._read("VmRSS")

    @staticmethod
    def peak() -> int:
        return HostMemory._read("VmHWM")

    @staticmethod
    def reset_peak() -> None:
        Path("/proc/self/clear_refs").write_text("5")

    @staticmethod
    def _read(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
