"""Saves models, reloads them in one fresh process without llm_pruner, and runs them there as here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from llm_pruner.output.checkpoint import write
from tests.support import tiny


def reload_in_a_fresh_process(models: dict[tuple[str, str], torch.nn.Module], folder: Path) -> dict:
    """{(case, name): (here, there)}, each with `logits`, `generated` (greedily, with cache); there also `problems`."""
    here = {}
    for (case, name), model in models.items():
        write(model, None, folder / case / name)
        generated = model.generate(tiny.tokens(1, 6), max_new_tokens=8, do_sample=False, use_cache=True)
        here[case, name] = {"logits": tiny.logits(model), "generated": generated}
    (folder / "tokens.json").write_text(json.dumps([tiny.tokens().tolist(), tiny.tokens(1, 6).tolist()]))
    script = Path(__file__).with_name("reload.py")
    environment = {**os.environ, "HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", str(script), str(folder)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    there = torch.load(folder / "out.pt")
    return {(case, name): (found, there[case][name]) for (case, name), found in here.items()}


def assert_same(here: dict, there: dict) -> None:
    torch.testing.assert_close(there["logits"], here["logits"], atol=1e-6, rtol=1e-6)
    assert torch.equal(there["generated"], here["generated"])
    assert there["problems"] == {}
