import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests import REPOSITORY
from tests.support.forks import Forks


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the reference model and text."""
    folder = Path(os.environ.get("LLM_PRUNER_SHARED", REPOSITORY.parent / "shared"))
    assert (folder / "models").is_dir(), f"LLM_PRUNER_SHARED: {folder} holds no models"
    return folder


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)


@pytest.fixture
def model(tmp_path) -> Path:
    """A copy of the demo model to break."""
    from tests.support.commands import DEMO

    return Path(shutil.copytree(DEMO, tmp_path / "model"))


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    forks = Forks(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path_factory.mktemp("hf")))
    yield forks
    forks.stop()


@pytest.fixture
def python(tmp_path, forks):
    """Runs `python *arguments` in an empty folder, without the network: in a fork, see forks.py, or in a `fresh`
    process, as it must where `environment` matters to what is imported."""

    def run(*arguments, timeout: float = 120, fresh: bool = False, **environment):
        return (subprocess.run if fresh or environment else forks.run)(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": str(tmp_path / "hf"),
                **environment,
            },
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout,
        )

    return run


@pytest.fixture
def command(python):
    """Runs `prune_llm.py` as a user would; see `python`."""
    return partial(python, REPOSITORY / "prune_llm.py")


@pytest.fixture
def command_of(python):
    """Runs `python -m llm_pruner …` likewise."""
    return partial(python, "-m", "llm_pruner")


@pytest.fixture
def no_fresh_process(monkeypatch):
    """A run does not reload what it saved, which takes seconds and has tests of its own."""
    from llm_pruner.output import checkpoint

    monkeypatch.setattr(checkpoint, "verify", lambda *_: None)


@pytest.fixture
def quick_reload(forks, monkeypatch):
    """The process in which a run reloads what it saved is a fork."""
    monkeypatch.setattr(subprocess, "run", forks.run)
