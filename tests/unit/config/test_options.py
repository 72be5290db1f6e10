"""Options: what a YAML file may say, and how they are declared."""

import ast

import pytest

from llm_pruner.cli.commands import COMMANDS
from llm_pruner.config.options import fields_of, read_yaml
from llm_pruner.config.prune import FIELDS, PruneOptions
from llm_pruner.errors import UsageError
from tests import REPOSITORY
from tests.support.options import write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: m\npruning_ratio: 5e-1\n", r"line 2: pruning_ratio: '5e-1' is str.*0 <= ratio < 1.*write 0\.5"),
        ("model: m\npruning_ratio: 50%\n", "line 2: pruning_ratio: '50%' is str"),
        ("model: m\npruning_ratio: .nan\n", "line 2: pruning_ratio: '.nan'"),
        ("model: m\nprunning_ratio: 0.5\n", "line 2: unknown option 'prunning_ratio'; did you mean 'pruning_ratio'"),
        ("model: m\nseed: 1\nseed: 2\n", "line 3: 'seed' is set twice"),
        ("model: !!python/object/apply:os.system ['touch pwned']\n", "line 1: could not determine a constructor"),
        ("model: !!python/name:os.system\n", "line 1: could not determine a constructor"),
        ("model: [a, b]\n", "line 1: model: .* it must be text"),
        ("seed: true\n", "line 1: seed: True is bool"),
        ("dry_run: 1\n", "line 1: dry_run: 1 is int, it must be true or false"),
        ("- a\n- b\n", "must be a mapping"),
        ("null\n", "must be a mapping"),
        ("model: 'm\n", "line"),
    ],
)
def test_yaml_that_cannot_be_meant(tmp_path, text, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        read_yaml(write(tmp_path, text), FIELDS)
    assert not (tmp_path / "pwned").exists()


def test_empty_yaml(tmp_path):
    assert read_yaml(write(tmp_path, "# nothing yet\n"), FIELDS) == {}


def test_missing_yaml():
    with pytest.raises(UsageError, match="No such file"):
        read_yaml("nowhere.yaml", FIELDS)


def test_every_option_has_a_legal_default_and_help():
    assert PruneOptions()
    assert all(len(f.metadata["help"]) > 10 for f in FIELDS.values())


def test_no_option_is_declared_twice():
    """Groups are composed, and a command that needs another default says so without a declaration."""
    declared = []
    for path in (REPOSITORY / "llm_pruner" / "config").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = getattr(getattr(node, "value", None), "func", None)
            if isinstance(node, ast.AnnAssign) and getattr(called, "id", "") == "option":
                declared.append(node.target.id)
    assert sorted(declared) == sorted(set(declared))
    every = {name for command in COMMANDS.values() for name in fields_of(command.options)}
    assert set(declared) == every
