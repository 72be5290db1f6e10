import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.commands import DEMO, REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the reference model and text."""
    folder = Path(os.environ.get("LLM_PRUNER_SHARED", REPOSITORY.parent / "shared"))
    assert (folder / "models").is_dir(), f"LLM_PRUNER_SHARED: {folder} holds no models"
    return folder


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the demo model to break."""
    return Path(shutil.copytree(DEMO, tmp_path / "model"))


@pytest.fixture
def command(tmp_path):
    """Runs `prune_llm.py` as a user would, in an empty folder and without the network."""
    return _runner(tmp_path, [str(REPOSITORY / "prune_llm.py")])


@pytest.fixture
def command_of(tmp_path):
    """Runs `python -m llm_pruner …` likewise."""
    return _runner(tmp_path, ["-m", "llm_pruner"])


def _runner(folder: Path, start: list[str]):
    def run(*arguments, timeout: float = 120, **environment):
        return subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            cwd=folder,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
