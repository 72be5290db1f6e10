"""The small inputs that faults damage, made once per session: models, texts, and what commands of this program made.

Names are what a Fault `needs`; each puts the same paths into the folder where its command runs.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests import REPOSITORY

PROSE = "The wind was cold and the gulls were loud. Rain fell on the roofs. " * 30
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma3_text", "gpt2", "gpt_neox")
MODEL = """
import sys
sys.path.insert(0, sys.argv[2])
from transformers import AutoTokenizer
from tests.support import tiny
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2] + "/llm_pruner/model/demo/model")
tiny.model(sys.argv[1], 0, vocab_size=len(tokenizer)).save_pretrained("model")
tokenizer.save_pretrained("model")
"""
HALF = "--pruning_ratio 0.5 --importance magnitude --eval_data none"
CALIBRATED = "--calibration_data text.txt --calibration_seq_len 16 --nsamples 4"
RECOVER = (
    "recover --model pruned --teacher model --data text.txt --eval_data none --max_seq_len 16 --steps 4 --device cpu "
)
UNFINISHED = RECOVER + "--save_minutes 0.0000001 --save_model recovered"
PIPELINE = {
    "prune": {"pruning_ratio": 0.5, "importance": "magnitude", "eval_data": "none"},
    "evaluate": {"eval_data": "text.txt", "max_seq_len": 16},
}
KILL_AT_THE_THIRD_CHECKPOINT = {"when": "os.mkdir:*checkpoint-3", "signal": "SIGKILL", "write": {}, "nth": 1}

# name → (what it needs, the commands that make it, the exit code of the last)
MADE: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "pruned": (("llama",), (f"prune --model model {HALF} --save_model pruned",), 0),
    "plan": (("llama",), (f"prune --model model {HALF} --dry_run --save_plan plan.json",), 0),
    "scores": (
        ("llama", "text"),
        (f"prune --model model {HALF} {CALIBRATED} --no_save --scores scores.safetensors".replace("magnitude",
            "wanda_sp"),),
        0,
    ),
    "unfinished": (("llama", "text", "pruned"), (UNFINISHED,), -9),
    "pipeline": (("llama", "text", "pipeline.yaml"), ("pipeline --config pipeline.yaml --model model --folder run",),
        0),
    "sweep": (
        ("llama", "text", "pattern.yaml"),
        ("sparsify --model model --patterns pattern.yaml --eval_data text.txt --max_seq_len 16 --folder sweep",),
        0,
    ),
}  # fmt: skip
FILES = {
    "text": ("text.txt", PROSE),
    "pipeline.yaml": ("pipeline.yaml", json.dumps(PIPELINE)),  # JSON is YAML
    "pattern.yaml": ("pattern.yaml", "n: 2\nm: 4\n"),
    "prune.yaml": ("prune.yaml", "pruning_ratio: 0.5\nimportance: magnitude\n"),
}


class Stock:
    """folder: where it is kept. run: runs `python *arguments` in a folder and returns what `subprocess.run` does."""

    def __init__(self, folder: Path, run: Callable) -> None:
        self.folder, self.run = folder, run

    def put(self, names: tuple[str, ...], folder: Path) -> None:
        """Copies what the names stand for into `folder`."""
        for name in names:
            kept = self.folder / name
            if not kept.is_dir():
                self._make(name, kept)
            shutil.copytree(kept, folder, dirs_exist_ok=True, symlinks=True)

    def _make(self, name: str, kept: Path) -> None:
        work = Path(tempfile.mkdtemp(dir=self.folder))
        if name in FILES:
            file, text = FILES[name]
            (work / file).write_text(text, encoding="utf-8")
        elif name in FAMILIES:
            done = self.run(["-c", MODEL, name, str(REPOSITORY)], work)
            assert done.returncode == 0, done.stderr
        else:
            needs, commands, code = MADE[name]
            self.put(needs, work)
            before = {path.name for path in work.iterdir()}
            plan = {"events": [KILL_AT_THE_THIRD_CHECKPOINT] if code == -9 else [], "log": os.devnull}
            for command in commands:
                arguments = [str(Path(__file__).with_name("process.py")), json.dumps(plan), *command.split()]
                done = self.run(arguments, work)
                assert done.returncode == code, f"{command}\n{done.returncode}\n{done.stdout}\n{done.stderr}"
            for path in list(work.iterdir()):
                if path.name in before:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        work.rename(kept)
