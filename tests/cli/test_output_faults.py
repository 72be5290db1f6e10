"""Whatever is in the way of the output, or happens while it is written, nothing is lost."""

import json
import os
import shutil

import pytest

from tests.support.commands import DEMO, HALF, UNSCORED, as_ours, one_line


def test_output_that_is_in_the_way(command, tmp_path, model):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    as_ours(shutil.copytree(DEMO, tmp_path / "mixed"))
    (tmp_path / "mixed" / "thesis.txt").write_text("mine")
    shutil.copytree(DEMO, tmp_path / "theirs")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "mine.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for target, message, *more in [
        ("file", "is a file"),
        ("file/below", "is not a folder with write permission"),
        ("full", "is not empty; use --overwrite"),
        ("full", "holds no checkpoint of this program", "--overwrite"),
        ("theirs", "holds no checkpoint of this program", "--overwrite"),
        ("mixed", "holds thesis.txt, which was not written by", "--overwrite"),
        ("model", "is model model, which this run needs", "--overwrite"),
        ("model/below", "is inside model model"),
        (".", "holds model model", "--overwrite"),
        ("text", "holds eval_data text/mine.txt", "--overwrite", "--eval_data", "text/mine.txt"),
        ("x" * 300, "File name too long"),
        ("/dev/null", "is a file, or a link to nothing"),
    ]:
        error = one_line(command("--model", "model", *HALF, *UNSCORED, *more, "--save_model", target), 2)
        assert message in error
    assert {path: path.read_bytes() for path in before} == before
    assert "where you are" in one_line(command("--model", "demo", *HALF, "--save_model", "."), 2)


def test_plan_files_that_would_be_lost_or_destroy(command, tmp_path, model):
    before = (model / "config.json").read_bytes()
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "pipe")  # not the null device: what fails here would replace the machine's
    for name in ("thesis.txt", "text.txt"):
        (tmp_path / name).write_text("mine")
    for arguments, message in [
        (("--save_plan", "model/config.json", "--dry_run"), "is inside model model"),
        (("--save_plan", "out/plan.json", "--save_model", "out"), "is inside the output folder out"),
        (("--save_plan", "nowhere/plan.json", "--dry_run"), "not a file in an existing folder"),
        (("--save_plan", "thesis.txt", "--dry_run"), "exists and is not a plan of this program"),
        (("--save_plan", "pipe", "--dry_run"), "is no regular file"),
        (("--save_plan", "text.txt", "--eval_data", "text.txt"), "is eval_data text.txt, which this run needs"),
    ]:
        assert message in one_line(command("--model", "model", *HALF, *arguments), 2)
    assert (model / "config.json").read_bytes() == before
    assert (tmp_path / "thesis.txt").read_text() == (tmp_path / "text.txt").read_text() == "mine"


@pytest.mark.slow
def test_work_folders_that_would_be_lost_or_destroy(command, tmp_path, model):
    (tmp_path / "file").write_text("mine")
    for folder, message in [
        ("file", "--work_dir file is a file; name a folder"),
        ("model/work", "--work_dir model/work is inside model model"),
        ("model", "--work_dir model is model model"),
        ("out", "--work_dir out is the output folder out"),
        ("out/work", "--work_dir out/work is inside the output folder out"),
    ]:
        arguments = ("--param_ratio", 0.5, "--calibration_data", "demo", "--work_dir", folder, "--save_model", "out")
        assert message in one_line(command("--model", "model", *arguments, *UNSCORED), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "model"]


def test_no_room_on_the_disk_is_seen_before_loading(python, tmp_path):
    script = (
        "import shutil, sys; from collections import namedtuple;"
        "shutil.disk_usage = lambda _: namedtuple('Usage', 'total used free')(10**9, 10**9, 10**6);"
        "import llm_pruner.model.loading as loading; loading.load_model = None;"
        "from llm_pruner.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = python("-c", script, "--model", "demo", *HALF)
    assert "has 0.00 GB free, the checkpoint needs 0.07 GB" in one_line(done, 1)
    assert list(tmp_path.iterdir()) == []


# What happens once the new checkpoint is half or wholly written, and what the command then returns.
INTERRUPTIONS = {
    "ctrl-c": ("checkpoint.verify = lambda *_: signal.raise_signal(signal.SIGINT)", 130),
    "terminated": ("checkpoint.verify = lambda *_: signal.raise_signal(signal.SIGTERM)", 143),
    "hung up": ("checkpoint.verify = lambda *_: signal.raise_signal(signal.SIGHUP)", 129),
    "killed": ("checkpoint.verify = lambda *_: os.kill(os.getpid(), signal.SIGKILL)", -9),
    "disk full": ("resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))", 1),
    "does not reload": (
        "write = checkpoint.write\n"
        "def broken(model, tokenizer, folder, source):\n"
        "    write(model, tokenizer, folder, source)\n"
        "    data = (folder / 'model.safetensors').read_bytes()\n"
        "    (folder / 'model.safetensors').write_bytes(data[:-100])\n"
        "checkpoint.write = broken",
        4,
    ),
    "other weights": (
        "write = checkpoint.write\n"
        "def broken(model, tokenizer, folder, source):\n"
        "    write(model, tokenizer, folder, source)\n"
        "    model.lm_head.weight.data += 1\n"
        "checkpoint.write = broken",
        4,
    ),
}
FRESH = ("ctrl-c", "other weights")  # the others in forks


@pytest.mark.slow
@pytest.mark.parametrize("name", INTERRUPTIONS)
def test_failure_while_saving_leaves_the_old_checkpoint(name, tmp_path, python, command):
    fault, code = INTERRUPTIONS[name]
    old = tmp_path / "out"
    shutil.copytree(DEMO, old)
    (old / "LICENSE").write_text("old")  # a mark: the new checkpoint has none
    as_ours(old)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    script = (
        "import os, resource, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # ignored where they run under nohup, and so by the run
        f"from llm_pruner.output import checkpoint\n{fault}\n"
        "from llm_pruner.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    )
    arguments = ("--model", "demo", *HALF, *UNSCORED, "--save_model", "out", "--overwrite")
    done = python("-c", script, *arguments, fresh=name in FRESH)
    assert done.returncode == code, done.stderr
    if code > 0:
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
