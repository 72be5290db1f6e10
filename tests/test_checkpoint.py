"""Staging and publishing, apart from models."""

import os

import pytest

from llm_pruner import checkpoint
from llm_pruner.checkpoint import staged
from llm_pruner.errors import RunError, UsageError


def content(folder) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("atomic", [True, False], ids=["exchange", "two renames"])
@pytest.mark.parametrize("before", [None, {}, {"config.json": "old", "gone": "old"}], ids=["new", "empty", "full"])
def test_publishes_the_whole_folder_or_nothing(tmp_path, monkeypatch, atomic, before):
    if not atomic:  # a system without renameat2
        monkeypatch.setattr(checkpoint, "_exchange", lambda *_: False)
    target = tmp_path / "a" / "out"
    if before is not None:
        target.mkdir(parents=True)
        for name, text in before.items():
            (target / name).write_text(text)

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
    monkeypatch.setattr(checkpoint, "_exchange", lambda *_: False)
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


def test_what_appears_during_the_run_is_not_replaced(tmp_path):
    target = tmp_path / "out"

    def race():
        with staged(target):
            target.mkdir()
            (target / "config.json").write_text("somebody else's")

    with pytest.raises(UsageError, match="was filled by something else"):
        race()
    assert content(target) == {"config.json": "somebody else's"}


def test_leftovers_of_killed_runs_go_and_those_of_live_ones_stay(tmp_path):
    dead, alive, other = (
        tmp_path / name for name in (f".out.partial-{2**22 + 1}-x", f".out.partial-{os.getpid()}-x", ".b")
    )
    for folder in (dead, alive, other):
        folder.mkdir()
    with staged(tmp_path / "out") as staging:
        (staging / "config.json").write_text("new")
    assert not dead.exists()
    assert alive.exists()
    assert other.exists()


def test_the_only_copy_comes_back_after_a_kill_between_two_renames(tmp_path):
    """Where folders cannot be exchanged atomically: the old one was moved aside, the new one not yet in place."""
    aside = tmp_path / f".out.partial-{2**22 + 1}-x-old"
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

    from llm_pruner.checkpoint import write
    from tests import tiny

    model = tiny.model("llama")
    model.generation_config = GenerationConfig(eos_token_id=[3, 5], max_new_tokens=9, temperature=0.9, top_p=0.6)
    write(model, None, tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert (saved.eos_token_id, saved.max_new_tokens) == ([3, 5], 9)
    assert saved.temperature in (None, 1.0)
