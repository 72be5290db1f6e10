"""YAML is read as data and within bounds: whatever is in it, one line says where and what."""

import os
import time

import pytest

from llm_pruner.config.options import read_yaml
from llm_pruner.config.prune import FIELDS
from llm_pruner.config.yaml_files import MOST, read_yaml_nodes
from llm_pruner.errors import UsageError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [" * 5000, "line 1: nested more than 32 levels deep"),
        ("- " * 10_000, "line 1: nested more than 32 levels deep"),
        ("model: m\nseed: " + "{a: " * 40 + "}" * 40, "line 2: nested more than 32 levels deep"),
        (BOMB, "line 2: aliases .* are not read"),
        ("model: &m demo\nplan: *m\n", "line 2: aliases .* are not read"),
        ("model: m\nseed: !!int foo\n", "line 2: 'foo' is no int"),
        ("model: m\nseed: !!timestamp foo\n", "line 2: 'foo' is no timestamp"),
        ("model: m\nseed: 2001-99-99\n", "line 2: '2001-99-99' is no timestamp"),
        ("model: m\nseed: " + "9" * 5000, "line 2: '9{49}…9{24}' is no int"),
        ("model: m\n\nplan: a\x01b\n", "line 3: a character that YAML does not have"),
        ("model: m\n---\nmodel: n\n", "line 2: but found another document"),
        ("? [model]\n: m\n", "line 1: found unhashable key"),
        ("!!binary bW9kZWw=: m\n", "line 1: unknown option"),
        ("5: m\n", "line 1: unknown option '5'"),
        ("model: '" + "x" * 10_000 + "\n", "line"),
        ("seed: " + "x" * 10_000, "line 1: seed: 'x{49}…x{24}' is str"),
        ("seed: [" + "1, " * 1000 + "1]", "line 1: seed: .*….*is list"),
        ("x" * 10_000 + ": 1\n", "line 1: (unknown option|could not find|mapping values)"),
        ("model: ''\n", "model is blank"),
        ("model: '  '\n", "model is blank"),
        ('save_model: "a\\0b"\n', "save_model: .* has a NUL character"),
        ("a: 1\n" * MOST, "bytes; at most 65,536 are read"),
    ],
)
def test_yaml_beyond_its_bounds(tmp_path, text, message):
    path = tmp_path / "options.yaml"
    path.write_text(text)
    started = time.monotonic()
    with pytest.raises(UsageError, match=message) as caught:
        read_yaml(str(path), FIELDS)
    assert "options.yaml" in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert time.monotonic() - started < 10


def test_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "options.yaml").write_text("\ufeffmodel: demo\n", encoding="utf-8")
    assert read_yaml(str(tmp_path / "options.yaml"), FIELDS) == {"model": "demo"}


def test_what_is_no_text_or_no_file(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("model: demo\n", encoding="utf-16")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_yaml(str(path), FIELDS)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="`config` .* is no regular file"):
        read_yaml(str(path), FIELDS)
    with pytest.raises(UsageError, match="is a folder"):
        read_yaml(str(tmp_path), FIELDS)


def test_tags_of_its_own_are_text(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text("doc: !function utils.f\n")
    assert read_yaml_nodes(path, "task", ("!function",))[1] == {"doc": "utils.f"}
    with pytest.raises(UsageError, match="line 1: could not determine a constructor"):
        read_yaml_nodes(path, "task")
