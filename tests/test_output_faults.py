"""Whatever is in the way of the output, or happens while it is written, nothing is lost."""

import json
import shutil

import pytest

from tests.commands import DEMO, HALF, UNSCORED, one_line


def test_output_that_is_in_the_way(command, tmp_path, model):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    shutil.copytree(DEMO, tmp_path / "mixed")
    (tmp_path / "mixed" / "thesis.txt").write_text("mine")
    for target, message, *more in [
        ("file", "is a file"),
        ("file/below", "is not a folder with write permission"),
        ("full", "is not empty; use --overwrite"),
        ("full", "holds something else than a checkpoint", "--overwrite"),
        ("mixed", "holds something else than a checkpoint", "--overwrite"),
        ("model", "is, holds or is in the input model", "--overwrite"),
        ("model/below", "is, holds or is in the input model"),
        (".", "is, holds or is in the input model", "--overwrite"),
        ("x" * 300, "File name too long"),
    ]:
        error = one_line(command("--model", "model", *HALF, *UNSCORED, "--save_model", target, *more), 2)
        assert message in error
    for mine in ("file", "full/thesis.txt", "mixed/thesis.txt"):
        assert (tmp_path / mine).read_text() == "mine"
    assert "where you are" in one_line(command("--model", "demo", *HALF, "--save_model", "."), 2)


def test_plan_files_that_would_be_lost_or_destroy(command, tmp_path, model):
    before = (model / "config.json").read_bytes()
    (tmp_path / "out").mkdir()
    for arguments, message in [
        (("--save_plan", "model/config.json", "--dry_run"), "is inside the input model"),
        (("--save_plan", "out/plan.json", "--save_model", "out"), "is inside out, which the checkpoint will replace"),
        (("--save_plan", "nowhere/plan.json", "--dry_run"), "not a file in an existing folder"),
    ]:
        assert message in one_line(command("--model", "model", *HALF, *arguments), 2)
    assert (model / "config.json").read_bytes() == before


def test_work_folders_that_would_be_lost_or_destroy(command, tmp_path, model):
    (tmp_path / "file").write_text("mine")
    for folder, message in [
        ("file", "--work_dir file is a file; name a folder"),
        ("model/work", "--work_dir model/work is inside the input model"),
        ("model", "--work_dir model is inside the input model"),
        ("out", "--work_dir out is inside out, where the checkpoint goes"),
        ("out/work", "--work_dir out/work is inside out, where the checkpoint goes"),
    ]:
        arguments = ("--param_ratio", 0.5, "--calibration_data", "demo", "--work_dir", folder, "--save_model", "out")
        assert message in one_line(command("--model", "model", *arguments, *UNSCORED), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_no_room_on_the_disk_is_seen_before_loading(python, tmp_path):
    script = (
        "import shutil, sys; from collections import namedtuple;"
        "shutil.disk_usage = lambda _: namedtuple('Usage', 'total used free')(10**9, 10**9, 10**6);"
        "import llm_pruner.loading as loading; loading.load_model = None;"
        "from llm_pruner.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = python("-c", script, "--model", "demo", *HALF)
    assert "has 0.00 GB free, the checkpoint needs 0.07 GB" in one_line(done, 1)
    assert list(tmp_path.iterdir()) == []


# What happens once the new checkpoint is half or wholly written, and what the command then returns.
INTERRUPTIONS = {
    "ctrl-c": ("checkpoint.verify = lambda *_: os.kill(os.getpid(), signal.SIGINT)", 130),
    "terminated": ("checkpoint.verify = lambda *_: os.kill(os.getpid(), signal.SIGTERM)", 143),
    "killed": ("checkpoint.verify = lambda *_: os.kill(os.getpid(), signal.SIGKILL)", -9),
    "disk full": ("resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))", 1),
    "does not reload": (
        "write = checkpoint.write\n"
        "def broken(model, tokenizer, folder):\n"
        "    write(model, tokenizer, folder)\n"
        "    data = (folder / 'model.safetensors').read_bytes()\n"
        "    (folder / 'model.safetensors').write_bytes(data[:-100])\n"
        "checkpoint.write = broken",
        4,
    ),
    "other weights": (
        "write = checkpoint.write\n"
        "def broken(model, tokenizer, folder):\n"
        "    write(model, tokenizer, folder)\n"
        "    model.lm_head.weight.data += 1\n"
        "checkpoint.write = broken",
        4,
    ),
}
FRESH = ("ctrl-c", "other weights")  # the others in forks


@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_failure_while_saving_leaves_the_old_checkpoint(name, tmp_path, python, command):
    fault, code = INTERRUPTIONS[name]
    old = tmp_path / "out"
    shutil.copytree(DEMO, old)
    (old / "LICENSE").write_text("old")  # a mark: the new checkpoint has none
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    script = (
        "import os, resource, signal, sys\n"
        f"from llm_pruner import checkpoint\n{fault}\n"
        "from llm_pruner.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    arguments = ("--model", "demo", *HALF, *UNSCORED, "--save_model", "out", "--overwrite")
    done = python("-c", script, *arguments, fresh=name in FRESH)
    assert done.returncode == code, done.stderr
    if code in (1, 4, 130):
        one_line(done, code)
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    others = [path.name for path in tmp_path.iterdir() if path.name != "out"]
    assert all(".partial-" in name for name in others)
    assert bool(others) == (code == -9), "only a kill leaves its staging folder"
    if not others:
        return
    done = command(*arguments)  # the next run sweeps it away
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("out", "hf")] == []
    assert not (old / "LICENSE").exists()
    assert json.loads((old / "config.json").read_text())["hidden_size"] == 96
