"""The command line: flags as they may be spelled, help, errors as one line, exit codes."""

import errno
import re
import signal
import sys
from pathlib import Path

import pytest

from llm_pruner._version import __version__
from llm_pruner.cli import commands, main
from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.main import build_parser, parse
from llm_pruner.config.options import fields_of
from llm_pruner.errors import PlanError, RunError, UsageError, VerificationError
from llm_pruner.output import places


def test_both_spellings_and_equals():
    one = parse(["--model", "m", "--pruning-ratio=0.5", "--dry-run", "--save-model", "a-b"])
    two = parse(["--model=m", "--pruning_ratio", "0.5", "--dry_run", "--save_model=a-b"])
    assert one == two
    assert one.save_model == "a-b"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_what_is_common_and_help_all_everything(name):
    command = COMMANDS[name]
    known = fields_of(command.options)
    short, long = (build_parser(command, every).format_help() for every in (False, True))
    flags = [set(re.findall(r"^  --(\w+)", text, re.MULTILINE)) for text in (short, long)]
    assert flags == [{option for option, f in known.items() if f.metadata["common"]}, set(known)]
    assert 5 < len(flags[0]) < 20
    assert "--help all" in short


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("words", "every"), [(["--help"], False), (["-h"], False), (["--help", "all"], True)])
def test_help_is_asked_for_by_the_command_line(capsys, name, words, every):
    with pytest.raises(SystemExit) as ended:
        parse(words, COMMANDS[name])
    assert ended.value.code == 0
    assert capsys.readouterr().out == build_parser(COMMANDS[name], every).format_help()


@pytest.fixture
def ends(monkeypatch):
    """`ends(error)`: a command whose run ends with the error, which `main` turns into a line and a code."""
    for name in ("stdout", "stderr"):  # they come back after the test
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(main, "_heed_signals", lambda: None)
    monkeypatch.setattr(places, "published", [])

    def command(error: BaseException | None):
        def run(options, argv):
            if error:
                raise error

        monkeypatch.setattr(commands.Command, "function", lambda self: run)
        return COMMANDS["prune"]

    return command


WORDS = ["--model", "m", "--pruning_ratio", "0.5"]
OUT = "out of memory{}; try --dtype bfloat16, --device cpu, --device_map auto or a smaller --max_seq_len"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (RunError("what failed"), 1, "what failed"),
        (UsageError("use a smaller `nsamples`\nor `dtype=float32`"), 2, "use a smaller --nsamples or --dtype float32"),
        (PlanError("no shape"), 3, "no shape"),
        (VerificationError("other logits"), 4, "other logits"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was published"),
        (main.Stopped(signal.SIGTERM), 143, "ended by SIGTERM; nothing was published"),
        (main.Stopped(signal.SIGHUP), 129, "ended by SIGHUP; nothing was published"),
        (MemoryError(), 1, OUT.format("")),
        (RuntimeError("CUDA out of memory. Tried\nall"), 1, OUT.format(" (CUDA out of memory. Tried)")),
        (
            OSError(errno.ENOSPC, "No space left"),
            1,
            f"no space left on the disk ([Errno {errno.ENOSPC}] No space left)",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), 1, "No such file: a.txt"),
        (OSError(errno.EIO, "Input/output error"), 1, "Input/output error"),
        (KeyError("key"), 1, "KeyError: 'key' (--traceback shows where)"),
        (RunError("token hf_abcdefgh12"), 1, "token hf_***"),
    ],
)
def test_an_error_is_one_line_and_a_code(ends, capsys, error, code, told):
    assert main.main(WORDS, ends(error)) == code
    assert capsys.readouterr() == ("", f"llm-pruner prune: error: {told}\n")


def test_a_very_long_error_is_shortened(ends, capsys):
    assert main.main(WORDS, ends(RunError("x" * 10**6))) == 1
    assert len(capsys.readouterr().err) < 1100


@pytest.mark.parametrize("error", [RunError("failed"), KeyboardInterrupt(), ValueError("failed")])
def test_what_was_saved_before_an_error_is_told(ends, capsys, error):
    command = ends(error)
    places.published.append(Path("out"))
    main.main(WORDS, command)
    assert capsys.readouterr().err.endswith("; saved before that: out\n")


@pytest.mark.parametrize("words", [WORDS + ["--traceback"], ["--traceback"]])
def test_a_traceback_is_printed_where_it_is_asked_for(ends, capsys, words):
    assert main.main(words, ends(RunError("token hf_abcdefgh12"))) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):\n")
    assert "hf_abcdefgh12" not in err


def test_a_run_that_does_what_it_should_ends_with_0(ends, capsys):
    assert main.main(WORDS, ends(None)) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["--version"], 0, f"llm-pruner {__version__}\n", ""),
        ([], 2, "usage: llm-pruner COMMAND", ""),
        (["--help"], 0, "usage: llm-pruner COMMAND", ""),
        (["prun", "--model", "m"], 2, "", "llm-pruner: error: unknown command 'prun'; did you mean 'prune'?\n"),
        (["recover", "--modle", "m"], 2, "", "llm-pruner recover: error: unknown argument '--modle'; did you mean"),
    ],
)
def test_commands_by_name(ends, capsys, words, code, out, err):
    ends(None)
    assert main.dispatch(words) == code
    printed = capsys.readouterr()
    assert printed.out.startswith(out)
    assert printed.err.startswith(err)
    assert bool(printed.out) == bool(out)
    assert bool(printed.err) == bool(err)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_run_unless_it_is_ignored(name):
    number = getattr(signal, name)
    before = {own: signal.getsignal(own) for own in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(number, signal.SIG_DFL)
        main._heed_signals()
        with pytest.raises(main.Stopped, match=str(128 + number)):
            signal.raise_signal(number)
        signal.signal(number, signal.SIG_IGN)
        main._heed_signals()
        signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        for own, handler in before.items():
            signal.signal(own, handler)
