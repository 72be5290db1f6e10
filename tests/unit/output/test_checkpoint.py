"""Staging and publishing, apart from models."""

import os
import shutil

import pytest

from llm_pruner.errors import RunError
from llm_pruner.output import checkpoint
from llm_pruner.output.checkpoint import staged, staging_prefix
from llm_pruner.output.places import not_ours
from tests.support.commands import as_ours


def content(folder) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file() and p.name != "report.json"
    }


@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("before", [None, {}, {"config.json": "old", "gone": "old"}], ids=["new", "empty", "full"])
def test_publishes_the_whole_folder_or_nothing(tmp_path, monkeypatch, atomic, before):
    if not atomic:  # a system without renameat2
        monkeypatch.setattr(checkpoint, "exchange", lambda *_: False)
    target = tmp_path / "a" / "out"
    if before is not None:
        target.mkdir(parents=True)
        for name, text in before.items():
            (target / name).write_text(text)
    if before:
        as_ours(target)

    def fail():
        with staged(target, overwrite=True) as staging:
            (staging / "config.json").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.exists() == (before is not None)
    assert content(target) == (before or {})
    with staged(target, overwrite=True) as staging:
        (staging / "config.json").write_text("new")
        (staging / "templates").mkdir()
        (staging / "templates" / "one").write_text("new")
    assert content(target) == {"config.json": "new", "templates/one": "new"}
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_a_failed_second_rename_brings_the_old_one_back(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    as_ours(target)
    monkeypatch.setattr(checkpoint, "exchange", lambda *_: False)
    rename, calls = os.rename, []

    def second_fails(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise OSError("no")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", second_fails)

    def publish():
        with staged(target, overwrite=True) as staging:
            (staging / "config.json").write_text("new")

    with pytest.raises(RunError, match="nothing there was changed"):
        publish()
    assert content(target) == {"config.json": "old"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("old", [False, True], ids=["nothing there", "a checkpoint there"])
def test_what_appears_during_the_run_is_not_replaced_and_the_work_is_kept(tmp_path, old, overwrite):
    target = tmp_path / "out"
    if old:
        target.mkdir()
        (target / "config.json").write_text("old")
        as_ours(target)

    def race():
        with staged(target, overwrite) as staging:
            (staging / "config.json").write_text("new")
            target.mkdir(exist_ok=True)
            (target / "notes.txt").write_text("mine")

    with pytest.raises(RunError, match="the finished checkpoint is in .*out-1"):
        race()
    assert content(target) == {"notes.txt": "mine"} | ({"config.json": "old"} if old else {})
    assert content(tmp_path / "out-1") == {"config.json": "new"}


@pytest.mark.parametrize("name", ["notes.txt", "config.json", "deep/er/notes.txt"])
@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "two renames"])
def test_what_appears_between_the_last_look_and_the_exchange_is_kept(tmp_path, monkeypatch, name, atomic):
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    as_ours(target)
    exchange = checkpoint.exchange

    def late(one, other):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_text("mine")
        return atomic and exchange(one, other)

    monkeypatch.setattr(checkpoint, "exchange", late)
    with staged(target, overwrite=True) as staging:
        (staging / "config.json").write_text("new")
    beside = tmp_path / "out-1"
    assert (target / "config.json").read_text() == "new"
    assert ((beside if name == "config.json" else target) / name).read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"out"} | ({"out-1"} if name == "config.json" else set())


def test_a_checkpoint_that_somebody_has_changed_is_not_replaced(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "config.json").write_text("old")
    as_ours(target)
    assert not_ours(target) is None
    for change, why in [
        (lambda: (target / "notes.json").write_text("mine"), "notes.json, which was not written by"),
        (lambda: (target / "config.json").write_text("mine"), "config.json, which was changed after"),
        (lambda: (target / "empty").mkdir(), "empty, which was not written by"),
        (lambda: (target / "link").symlink_to(tmp_path), "link, which was not written by"),
        (lambda: (target / "report.json").unlink(), "no report.json that lists its files"),
        (lambda: (target / "report.json").write_text("{"), "no report.json that lists its files"),
    ]:
        shutil.rmtree(target)
        target.mkdir()
        (target / "config.json").write_text("old")
        as_ours(target)
        change()
        assert why in not_ours(target)


def test_leftovers_of_killed_runs_go_and_those_of_live_ones_stay(tmp_path):
    prefix = staging_prefix(tmp_path / "out")
    dead, alive, other = (tmp_path / name for name in (f"{prefix}{2**22 + 1}-x", f"{prefix}{os.getpid()}-x", ".b"))
    for folder in (dead, alive, other):
        folder.mkdir()
    with staged(tmp_path / "out") as staging:
        (staging / "config.json").write_text("new")
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_the_only_copy_comes_back_after_a_kill_between_two_renames(tmp_path):
    """Where folders cannot be exchanged atomically: the old one was moved aside, the new one not yet in place."""
    aside = tmp_path / f"{staging_prefix(tmp_path / 'out')}{2**22 + 1}-x-old"
    aside.mkdir()
    (aside / "config.json").write_text("old")

    def fail():
        with staged(tmp_path / "out", overwrite=True):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert content(tmp_path / "out") == {"config.json": "old"}


def test_permissions_are_those_of_new_files(tmp_path):
    (tmp_path / "plain").write_text("")
    with staged(tmp_path / "out") as staging:
        (staging / "private").write_text("")
        (staging / "private").chmod(0o600)
    assert (tmp_path / "out" / "private").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_generation_config_that_cannot_be_saved_loses_only_what_is_illegal(tmp_path):
    """Llama-2 was published with sampling parameters and without do_sample."""
    from transformers import GenerationConfig

    from llm_pruner.output.checkpoint import write
    from tests.support import tiny

    model = tiny.model("llama")
    model.generation_config = GenerationConfig(eos_token_id=[3, 5], max_new_tokens=9, temperature=0.9, top_p=0.6)
    write(model, None, tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.eos_token_id, saved.max_new_tokens) == ([3, 5], 9)
    assert saved.temperature in (None, 1.0)
