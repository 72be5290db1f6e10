"""The command line: flags as they may be spelled, help, errors as one line, exit codes."""

import re

import pytest

from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.main import build_parser, parse
from llm_pruner.config.options import fields_of


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
