"""Files: read within bounds, written whole or not at all, told from others by their content."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pruner import files
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.validation import text, whole

SCHEMA = {"name": text, "step": whole()}


def test_what_was_written_is_there_alone(tmp_path):
    files.write_text(tmp_path / "a.txt", "old")
    files.write_text(tmp_path / "a.txt", "new – \ud800")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new – ?"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [None, "old"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, before, error):
    if before:
        (tmp_path / "a.txt").write_text(before)

    def write(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(type(error)):
        files.write_whole(tmp_path / "a.txt", write)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({"a.txt": "old"} if before else {})


def test_a_name_of_any_legal_length_can_be_written(tmp_path):
    files.write_text(tmp_path / ("x" * 255), "long")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["long"]


def test_a_name_that_is_not_utf_8_is_reached_by_a_link(tmp_path):
    plain, odd = tmp_path / "plain", tmp_path / os.fsdecode(b"\xff")
    assert files.spelled(plain) == plain
    odd.mkdir()
    link = files.spelled(odd)
    str(link).encode("utf-8")
    (link / "a").write_text("there")
    assert (odd / "a").read_text() == "there"


@pytest.mark.parametrize("atomic", [True, False], ids=["renameat2", "without it"])
def test_a_rename_replaces_nothing(tmp_path, monkeypatch, atomic):
    if not atomic:
        monkeypatch.setattr(files, "_renameat2", lambda *_: False)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    with pytest.raises(FileExistsError, match="other"):
        files.rename_to_free(tmp_path / "one", tmp_path / "other")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(FileExistsError, match="link"):
        files.rename_to_free(tmp_path / "one", tmp_path / "link")
    assert (tmp_path / "other" / "a").read_text() == "other"
    files.rename_to_free(tmp_path / "one", tmp_path / "free")
    assert (tmp_path / "free" / "a").read_text() == "one"
    assert not (tmp_path / "one").exists()


def test_folders_are_exchanged_or_stay(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    swapped = files.exchange(tmp_path / "one", tmp_path / "other")
    found = [(tmp_path / name / "a").read_text() for name in ("one", "other")]
    assert found == (["other", "one"] if swapped else ["one", "other"])
    assert not files.exchange(tmp_path / "one", tmp_path / "missing")
    assert (tmp_path / "one" / "a").read_text() == found[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "plan .*a.json: No such file"),
        (lambda path: path.mkdir(), "a.json is a folder; a file is wanted"),
        (lambda path: os.mkfifo(path), "a.json is no regular file; a file is wanted"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (lambda path: path.write_bytes(b"ab\xff"), "a.json is not UTF-8 text: byte 2 is wrong"),
        (lambda path: path.write_text("x" * 11), "a.json has 11 bytes; at most 10 are read"),
    ],
)
@pytest.mark.parametrize("error", [UsageError, PlanError])
def test_a_file_that_is_no_text_is_named(tmp_path, make, message, error):
    make(tmp_path / "a.json")
    with pytest.raises(error, match=message):
        files.read_text(tmp_path / "a.json", "plan", most=10, error=error)


def test_a_name_with_a_nul_is_an_error_like_others():
    with pytest.raises(UsageError, match="plan a\0b: .*null"):
        files.read_text(Path("a\0b"), "plan")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "a.json, line 1 is not JSON"),
        ('{"a": 1,\n "b": }', "a.json, line 2 is not JSON"),
        ("9" * 5000, "is not JSON"),
        ("[" * 100_000, "is nested more than 64 levels deep"),
        ("[" * 65 + "]" * 65, "is nested more than 64 levels deep"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' occurs twice"),
    ],
)
def test_what_is_no_json_is_named(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        files.read_json(tmp_path / "a.json", "plan", unique=True)
    assert "\n" not in str(caught.value)


def test_json_at_its_bounds_is_read(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * 64 + "]" * 64)
    assert files.read_json(path, "plan")
    path.write_text('{"a": 1, "a": 2}')
    assert files.read_json(path, "plan") == {"a": 2}
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(path, "plan") == {"a": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@settings(deadline=None, max_examples=30)
@given(value=JSON)
def test_json_comes_back(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "a.json"
    files.write_json(path, value)
    assert files.read_json(path, "plan", unique=True) == value


@pytest.mark.parametrize("value", [float("nan"), [float("inf")]])
def test_json_without_nan(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(tmp_path / "a.json", value)
    assert list(tmp_path.iterdir()) == []


def test_state_comes_back(tmp_path, caplog):
    path = tmp_path / "state.json"
    assert files.read_state(path, SCHEMA) == {}
    files.write_state(path, {"name": "a", "step": 3, "more": [1]}, version=2)
    assert files.read_state(path, SCHEMA, version=2) == {"version": 2, "name": "a", "step": 3, "more": [1]}
    assert not caplog.records


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is not JSON"),
        ("[]", "must be a mapping"),
        (json.dumps({"name": "a", "step": 3}), "has no version"),
        (json.dumps({"version": 1, "name": "a"}), "has no step"),
        (json.dumps({"version": 1, "name": "a", "step": -1}), "step: -1 must be a whole number of at least 0"),
        (json.dumps({"version": 2, "name": "a", "step": 3}), "is of version 2, this one writes 1"),
    ],
)
def test_state_that_is_damaged_is_set_aside_and_told(tmp_path, caplog, content, told):
    path = tmp_path / "state.json"
    for number in range(1, 3):
        path.write_text(content)
        assert files.read_state(path, SCHEMA) == {}
        assert told in caplog.records[-1].getMessage()
        assert len(list(tmp_path.iterdir())) == number
    assert {own.name: own.read_text() for own in tmp_path.iterdir()} == {
        "state.json.damaged": content, "state.json.damaged-2": content,
    }  # fmt: skip


def test_a_fingerprint_is_of_the_content(tmp_path, monkeypatch):
    """Of a large file, of blocks that go over all of it, its size and its end."""
    monkeypatch.setattr(files, "BLOCK", 10)
    monkeypatch.setattr(files, "BLOCKS", 4)
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))
    first = files.fingerprint(path)
    path.rename(tmp_path / "b")
    assert files.fingerprint(tmp_path / "b") == first
    seen = []
    for place in (0, 30, 79, 99):
        content = bytearray(range(100))
        content[place] ^= 1
        path.write_bytes(content)
        seen.append(files.fingerprint(path) != first)
    assert seen == [True, True, True, False], "blocks of 10 from 0, 25, 50 and 75"
    path.write_bytes(bytes(range(99)))
    assert files.fingerprint(path) != first


def test_small_files_are_told_apart_by_every_byte(tmp_path):
    path, found = tmp_path / "a", set()
    for content in (b"", b"a", b"b", b"aa", b"a" * 70_000, b"a" * 69_999 + b"b"):
        path.write_bytes(content)
        found.add(files.fingerprint(path))
    assert len(found) == 6


def test_a_checkpoint_is_its_config_and_its_weights(tmp_path):
    def digest(**changed: str) -> str:
        for name, content in {"config.json": "{}", "model.safetensors": "w", "README.md": "r", **changed}.items():
            (tmp_path / name).write_text(content)
        return files.checkpoint_digest(str(tmp_path), tmp_path)

    first = digest()
    assert digest(**{"README.md": "other", "report.json": "{}"}) == first
    changed = [digest(**{name: "other"}) for name in ("config.json", "model.safetensors", "more.bin")]
    assert len({first, *changed}) == 4


def test_a_checkpoint_of_the_hub_is_its_commit(tmp_path):
    assert files.checkpoint_digest("org/no-such-folder", tmp_path / "abc123") == "org/no-such-folder@abc123"


def test_a_text_is_its_name_or_its_content(tmp_path):
    assert files.text_digest("wikitext2") == "wikitext2"
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "c.txt").write_text("two")
    found = [files.text_digest(str(tmp_path / f"{name}.txt")) for name in "abc"]
    assert found[0] == found[1] != found[2]
