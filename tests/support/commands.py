"""What the tests that run the command share."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from llm_pruner.model import loading
from llm_pruner.output import manifest
from tests.support import tiny

DEMO = Path(loading.resolve("demo"))
HALF = ("--pruning_ratio", "0.5", "--importance", "magnitude")
UNSCORED = ("--eval_data", "none")


def as_ours(folder: Path) -> Path:
    """Makes what is in the folder what a run of this program wrote there."""
    report = {"step": "prune", "versions": {"llm_pruner": "0"}, "files": manifest.listed(folder, but=("report.json",))}
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def edit_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def one_line(done, code: int) -> str:
    """The error, which is one line, after checking the exit code."""
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    lines = [line for line in done.stderr.splitlines() if re.match(r"llm-pruner \w+: error: ", line)]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    return tiny.logits(AutoModelForCausalLM.from_pretrained(folder))
