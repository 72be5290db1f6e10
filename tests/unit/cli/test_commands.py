"""The commands as data."""

import ast

import pytest

from llm_pruner.cli.commands import CODES, COMMANDS
from llm_pruner.errors import PrunerError
from tests import REPOSITORY


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_what_does_it(name):
    """As far as the source shows it: importing all of it takes seconds."""
    command = COMMANDS[name]
    assert command.prog == f"llm-pruner {name}"
    assert command.examples
    module, _, function = command.run.partition(":")
    tree = ast.parse((REPOSITORY / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    found = {node.name: [own.arg for own in node.args.args] for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert found[function][:2] == ["options", "argv"]


def test_every_exit_code_is_explained():
    kinds = PrunerError.__subclasses__()
    assert kinds
    for kind in kinds:
        assert f" {kind.exit_code} " in CODES
