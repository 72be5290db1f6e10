"""The files of a tokenizer: what is wrong with them, and that they are carried over as they are."""

import json
import os
import shutil

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from llm_pruner.errors import RunError, UsageError
from llm_pruner.model import tokenizers
from llm_pruner.model.tokenizers import PROBE, carry_over, load_tokenizer
from tests.support.commands import DEMO

WANTED = {  # what other programs look for beside what transformers reads
    "tokenizer.model": b"\n\x0eunread", "added_tokens.json": b"{}", "merges.txt": b"#version: 0.2\n",
    "qwen.tiktoken": b"IQ== 0\n", "chat_template.jinja": b"{{ messages }}\n", "LICENSE": b"terms", "Notice.txt": b"n",
    "USE_POLICY.md": b"p", "additional_chat_templates/tools.jinja": b"{{ tools }}",
}  # fmt: skip
NOT_OURS = ("README.md", "training_args.bin", "notes.json", "model.safetensors.index.json", "evil.py")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(DEMO / name, folder)
    return folder


@pytest.fixture
def target(tmp_path, source):
    folder = tmp_path / "target"
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    return folder


def contents(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_every_file_is_carried_over_byte_for_byte(source, target):
    for name, content in WANTED.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(content)
    for name in NOT_OURS:
        (source / name).write_text("x")
    os.mkfifo(source / "license.pipe")
    written = carry_over(source, target, load_tokenizer(source))
    found = contents(target)
    expected = {name: content for name, content in contents(source).items() if name not in NOT_OURS}
    assert found == expected
    assert sorted(written) == sorted(set(found) - {"config.json"})


def test_links_are_followed(source, target, tmp_path):
    """As the hub's cache has them."""
    blob = tmp_path / "blob"
    shutil.move(source / "tokenizer.json", blob)
    (source / "tokenizer.json").symlink_to(blob)
    carry_over(source, target, load_tokenizer(source))
    assert not (target / "tokenizer.json").is_symlink()
    assert (target / "tokenizer.json").read_bytes() == blob.read_bytes()


def test_a_tokenizer_that_would_be_another_is_written_anew(source, target, caplog):
    """Its class depends on config.json where its own files do not say it."""
    (source / "tokenizer_config.json").unlink()
    (source / "tokenizer.model").write_bytes(b"\n\x0eunread")
    tokenizer = load_tokenizer(source)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing("$A a", special_tokens=[("a", 70)])
    carry_over(source, target, tokenizer)
    assert (target / "tokenizer.json").read_bytes() != (source / "tokenizer.json").read_bytes()
    assert (target / "tokenizer.model").read_bytes() == b"\n\x0eunread"
    again = AutoTokenizer.from_pretrained(target)
    assert again(PROBE)["input_ids"] == tokenizer(PROBE)["input_ids"]
    assert again("x")["input_ids"][-1] == 70
    written = (target / "tokenizer_config.json").read_text()
    assert not set(json.loads(written)) & {"is_local", "local_files_only", "name_or_path"}
    assert str(source) not in written
    assert not caplog.records


def test_what_cannot_be_made_the_same_costs_a_warning(source, target, caplog, monkeypatch):
    tokenizer = load_tokenizer(source)
    monkeypatch.setattr(tokenizers, "_is_same", lambda *_: False)
    carry_over(source, target, tokenizer)
    assert "gives other tokens" in caplog.text
    caplog.clear()

    def fail(*_):
        raise ValueError("cannot be serialised")

    monkeypatch.setattr(tokenizer, "save_pretrained", fail)
    carry_over(source, target, tokenizer)
    assert "cannot be saved: cannot be serialised" in caplog.text
    assert (target / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_source_that_is_gone_costs_no_checkpoint(source, target, tmp_path, caplog):
    tokenizer = load_tokenizer(source)
    written = carry_over(tmp_path / "gone", target, tokenizer)
    assert {"tokenizer.json", "tokenizer_config.json"} <= set(written)
    assert AutoTokenizer.from_pretrained(target)(PROBE)["input_ids"] == tokenizer(PROBE)["input_ids"]
    assert "cannot be carried over" in caplog.text


def test_a_full_disk_is_one(source, target, monkeypatch):
    def full(_, to):
        to.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        carry_over(source, target, load_tokenizer(source))
    assert sorted(contents(target)) == ["config.json"], "nothing half-written stays"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json, line 1 is not JSON"),
        ("tokenizer.json", "[]", "tokenizer.json must be a mapping"),
        ("tokenizer.json", '{"model": {"type": "Foo"}}', "tokenizer.json is no tokenizer"),
        ("tokenizer.json", "", "tokenizer.json is empty"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "tokenizer.json is a Git LFS pointer"),
        ("tokenizer.json", "é".encode("latin-1"), "tokenizer.json is not UTF-8"),
        ("tokenizer_config.json", "{", "tokenizer_config.json, line 1 is not JSON"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json is nested more than"),
        ("tokenizer_config.json", '{"tokenizer_class": 7}', "tokenizer_config.json: tokenizer_class: 7 must be text"),
        ("tokenizer_config.json", '{"model_max_length": "long"}', "model_max_length: 'long' must be a finite number"),
        ("tokenizer_config.json", '{"added_tokens_decoder": 7}', "added_tokens_decoder: 7 must be a mapping"),
    ],
)
def test_a_broken_file_is_named(source, file, content, message):
    (source / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message):
        load_tokenizer(source)


def test_a_pipe_is_not_waited_for(source):
    (source / "tokenizer.json").unlink()
    os.mkfifo(source / "tokenizer.json")
    with pytest.raises(UsageError, match="no regular file"):
        load_tokenizer(source)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"\n\x0e\n\x05<unk>", RunError, "a SentencePiece model .* sentencepiece and protobuf .pip install"),
        (b"IQ== 0\nIg== 1\n", RunError, "a tiktoken vocabulary .* reading it takes tiktoken .pip install tiktoken"),
        (b"junk", UsageError, "neither a SentencePiece model nor a tiktoken vocabulary"),
        (b"version https://git-lfs.github.com/spec/v1\n", UsageError, "Git LFS pointer"),
    ],
)
def test_packages_that_a_vocabulary_takes(source, monkeypatch, content, error, message):
    (source / "tokenizer.json").unlink()
    (source / "tokenizer.model").write_bytes(content)
    monkeypatch.setattr(tokenizers, "find_spec", lambda _: None)
    with pytest.raises(error, match=message):
        load_tokenizer(source)


def test_one_that_nobody_needs_may_be_broken(source, target, capsys):
    (source / "tokenizer.json").write_text("{")
    assert load_tokenizer(source, needed=False) is None
    assert "no text is read" in capsys.readouterr().out
    assert tokenizers.has_tokenizer(source)
    assert carry_over(source, target) == ["tokenizer.json", "tokenizer_config.json"]
    assert (target / "tokenizer.json").read_text() == "{"


def test_a_folder_without_one(tmp_path, source):
    (source / "tokenizer.json").unlink()
    assert load_tokenizer(source) is None
    assert not tokenizers.has_tokenizer(source)
