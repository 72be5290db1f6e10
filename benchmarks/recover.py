"""llama-6m cut to half of its attention and MLP parameters by the best method, then recovered for three minutes: how
much of the remaining gap in log-perplexity to the dense model comes back, by distillation and by LoRA.

    python benchmarks/recover.py                  # about ten minutes; results/recover_cpu.json
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import keep

SHARED = Path(os.environ.get("LLM_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))

# of training; the rest of three minutes is for reading the data
MINUTES = 2.9
RUNS = {
    "distil": ("--method", "distil"),
    "lora": ("--method", "lora"),
}


def command(*arguments) -> float:
    """Seconds that the command took."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "llm_pruner", *map(str, arguments)], check=True)
    return time.monotonic() - started


def main() -> None:
    model, wikitext = SHARED / "models" / "llama-6m", SHARED / "data" / "wikitext-2"
    scored = ("--eval_data", wikitext / "test.txt", "--max_seq_len", 256)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command(
            "prune", "--model", model, "--param_ratio", 0.5, "--method", "reconstruct", "--calibration_data",
            wikitext / "valid.txt", "--nsamples", 128, "--calibration_seq_len", 128, *scored,
            "--save_model", folder / "half",
        )  # fmt: skip
        pruned = json.loads((folder / "half" / "report.json").read_text())
        found = {}
        for run, flags in RUNS.items():
            out = folder / run
            seconds = command(
                "recover", "--model", folder / "half", "--data", wikitext / "valid.txt", *flags, *scored,
                "--max_minutes", MINUTES, "--save_model", out,
            )  # fmt: skip
            report = json.loads((out / "report.json").read_text())
            found[run] = {
                "perplexity": report["perplexity"]["after"],
                "recovered_share": report["recovered_share"],
                "training": {k: v for k, v in report["training"].items() if k != "data"},
                "history": report["history"],
                "seconds": report["seconds"] | {"whole command": round(seconds, 1)},
                "peak_memory": report["peak_memory"],
            }
        keep("recover_cpu", {
            "model": "llama-6m", "parameters": pruned["parameters"], "perplexity": pruned["perplexity"],
            "evaluation": "all 1501 windows of 256 tokens of WikiText-2's test text", "minutes": MINUTES,
            "training_data": "WikiText-2's validation text, which it was calibrated on too", "runs": found,
        })  # fmt: skip
    for run, one in found.items():
        minutes = one["training"]["minutes"]
        print(f"{run}: {one['perplexity']:.1f}, {one['recovered_share']:.0%} of the gap, {minutes:.1f} min")


if __name__ == "__main__":
    main()
