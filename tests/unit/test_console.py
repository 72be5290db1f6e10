"""The console: lines that cannot fail, without tokens, of the first process only."""

import io
import os
import sys

import pytest

from llm_pruner import console
from llm_pruner.console import aligned


@pytest.fixture(autouse=True)
def _streams(monkeypatch):
    """The standard streams come back after the test."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


def steady_on(monkeypatch, stream):
    """`stream` as standard output, made steady."""
    monkeypatch.setattr(sys, "stdout", stream)
    console.steady()
    return sys.stdout


def test_a_line_is_without_tokens(capsys):
    console.log("from https://me:secret@host/x with hf_abcdefgh12")
    assert capsys.readouterr().out == "from https://***@host/x with hf_***\n"


@pytest.mark.parametrize(("rank", "printed"), [(None, "line\n"), ("0", "line\n"), ("1", "")])
def test_one_voice_of_several_processes(monkeypatch, capsys, rank, printed):
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    console.log("line")
    assert capsys.readouterr().out == printed


def test_what_an_encoding_does_not_have_is_escaped(monkeypatch):
    raw = io.BytesIO()
    steady_on(monkeypatch, io.TextIOWrapper(raw, encoding="ascii"))
    console.log("é – ok")
    assert raw.getvalue() == b"\\xe9 \\u2013 ok\n"


def test_lines_into_a_closed_pipe_are_lost_and_no_work(monkeypatch):
    end, pipe = os.pipe()
    os.close(end)
    stream = open(pipe, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
    steady_on(monkeypatch, stream)
    for _ in range(3):
        console.log("nobody listens")
    assert os.path.samestat(os.fstat(pipe), os.stat(os.devnull))
    stream.close()


class Full(io.StringIO):
    def write(self, text):
        raise OSError("no space left on device")


@pytest.mark.parametrize("closed", [True, False])
def test_a_stream_without_a_number_that_breaks_is_replaced(monkeypatch, closed):
    stream = Full()
    if closed:
        stream.close()
    out = steady_on(monkeypatch, stream)
    assert out.write("lost") == 4
    assert out.write("lost as well") == 12
    out.flush()
    assert not out.isatty()
    assert out.name == os.devnull
    out.close()


def test_a_stream_that_was_closed_when_python_started_is_the_null_device(monkeypatch):
    out = steady_on(monkeypatch, None)
    console.log("lost")
    assert out.name == os.devnull
    out.close()


def test_steady_twice_is_steady_once(monkeypatch):
    first = steady_on(monkeypatch, io.StringIO())
    console.steady()
    assert sys.stdout is first


def test_columns_are_aligned():
    assert aligned([["", "a"], ["long name", "1"]]) == "           a\nlong name  1"
    assert aligned([["a", "b", ""], ["c", "dd", ""]]) == "a   b\nc  dd"
