"""Golden runs: what the commands make of two small models, as digests, so that a move of the code can be checked.

    python benchmarks/golden.py FILE            # compares with FILE, and exits with 1 where something differs
    python benchmarks/golden.py FILE --record   # writes FILE

Of each run the SHA-256 of every safetensors file is kept and its report.json, without what differs from run to run
(times, memory, versions, paths). Digests hold for one machine and one version of torch: record them before a move of
the code and compare after it, on the same machine.
"""

import argparse
import difflib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("LLM_PRUNER_SHARED", ROOT.parent / "shared")).resolve()
VOLATILE = ("seconds", "peak_memory", "versions", "command", "files", "minutes", "tokens_per_second", "digest",
            "options", "schema")  # fmt: skip
LLAMA = str(SHARED / "models/llama-6m")
TEXTS = {
    "demo": ("--nsamples", "16", "--calibration_seq_len", "128", "--dtype", "float32"),
    "llama": (
        "--calibration_data", str(SHARED / "data/wikitext-2/valid.txt"), "--nsamples", "16",
        "--calibration_seq_len", "128", "--dtype", "float32", "--eval_data", "none",
    ),
}  # fmt: skip
RECONSTRUCT = ("--method", "reconstruct", "--epochs", "2")
# name → options of prune
PRUNINGS = {
    "magnitude": ("--importance", "magnitude", "--pruning_ratio", "0.5"),
    "wanda_sp": ("--importance", "wanda_sp", "--param_ratio", "0.2"),
    "flap": ("--importance", "flap", "--structure", "AL-AM", "--param_ratio", "0.3", "--compensate", "bias"),
    "taylor": ("--importance", "taylor", "--param_ratio", "0.25", "--save_plan", "{plan}"),
    "replay": ("--plan", "{plan}"),
    "masked": ("--importance", "amp", "--param_ratio", "0.25", "--mask_only"),
    "searched": (*RECONSTRUCT, "--param_ratio", "0.3", "--search_minutes", "1000"),
    "whole": (*RECONSTRUCT, "--target_params", "{params}", "--search_minutes", "0"),
    "ratio": (*RECONSTRUCT, "--pruning_ratio", "0.25"),
    "per_layer": (*RECONSTRUCT, "--param_ratio", "0.3", "--per_layer", "--search_minutes", "0"),
    "shallow": (*RECONSTRUCT, "--target", "num_hidden_layers={layers}"),
}
NEEDS_TEXT = set(PRUNINGS) - {"magnitude", "replay"}
# name → command and options
OTHERS = {
    "sparse": ("sparsify", "--n", "8", "--m", "16", "--transform", "variance", "--causal"),
    "learned": ("sparsify", "--n", "2", "--m", "4", "--transform", "learnable", "--epochs", "1"),
    "weights": ("sparsify", "--sparse", "weights", "--ratio", "0.5", "--criterion", "wanda"),
}


def main() -> None:
    """Records the runs, or compares them with what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", nargs="*", help="names of runs, such as demo/flap; default: all")
    parser.add_argument("--method", default="reconstruct", help="what --method is called in the version at hand")
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, command in commands(Path(folder), arguments.method).items():
            if not arguments.only or name in arguments.only:
                found[name] = outcome(name, command, Path(folder))
                print(f"{name}: {len(found[name]['files'])} files", flush=True)
                if not arguments.record:
                    report_differences(name, json.loads(arguments.file.read_text())[name], found[name])
    if arguments.record:
        arguments.file.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        return
    recorded = json.loads(arguments.file.read_text())
    if different := [name for name in found if recorded[name] != found[name]]:
        sys.exit(f"{len(different)} of {len(found)} runs differ: {', '.join(different)}")
    print(f"{len(found)} runs are as recorded")


def commands(folder: Path, method: str) -> dict[str, list[str]]:
    """{name: arguments of python}, in an order in which each finds what it needs."""
    made: dict[str, list[str]] = {}
    for model, path, params, layers in (("demo", "demo", 60_000, 1), ("llama", LLAMA, 5_200_000, 5)):
        values = {"plan": str(folder / f"{model}.plan.json"), "params": params, "layers": layers}
        for name, options in PRUNINGS.items():
            own = [option.format(**values) for option in options]
            own = [method if option == "reconstruct" else option for option in own]
            text = TEXTS[model] if name in NEEDS_TEXT else TEXTS[model][6:] if model == "llama" else TEXTS[model][4:]
            target = str(folder / model / name)
            made[f"{model}/{name}"] = ["prune_llm.py", "--model", path, *own, *text, "--save_model", target]
        for name, (command, *options) in OTHERS.items():
            target = str(folder / model / name)
            made[f"{model}/{name}"] = [
                "-m", "llm_pruner", command, "--model", path, *options, *TEXTS[model], "--save_model", target,
            ]  # fmt: skip
        data = () if model == "demo" else ("--data", TEXTS["llama"][1], "--eval_data", "none")
        for name, options in {"distilled": (), "adapted": ("--method", "lora")}.items():
            made[f"{model}/{name}"] = [
                "-m", "llm_pruner", "recover", "--model", str(folder / model / "magnitude"), *options, *data,
                "--steps", "4", "--max_seq_len", "128", "--train_batch_size", "4",
                "--save_model", str(folder / model / name),
            ]  # fmt: skip
    return made


def outcome(name: str, command: list[str], folder: Path) -> dict:
    """Runs a command and returns what is kept of it."""
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, text=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    target = folder / name
    report = (target / "report.json").read_text().replace(str(folder), "FOLDER").replace(str(SHARED), "SHARED")
    return {
        "files": {
            path.relative_to(target).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted([*target.rglob("*.safetensors"), *target.rglob("config.json")])
        },
        "report": steady(json.loads(report)),
    }


def steady(value):
    """The value without the fields that differ from run to run."""
    if isinstance(value, dict):
        return {name: steady(own) for name, own in value.items() if name not in VOLATILE}
    return [steady(own) for own in value] if isinstance(value, list) else value


def report_differences(name: str, recorded: dict, found: dict) -> None:
    """Prints what differs, line by line."""
    before, after = (json.dumps(one, indent=1, sort_keys=True).splitlines() for one in (recorded, found))
    for line in difflib.unified_diff(before, after, f"{name}, recorded", f"{name}, now", n=1, lineterm=""):
        print(f"  {line}", flush=True)


if __name__ == "__main__":
    main()
