"""Messages of the library, in which parameters become flags."""

import ast
import re

import pytest

from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.messages import FLAGS, with_flags
from llm_pruner.config.options import fields_of
from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import PlanError
from llm_pruner.methods import ScoreAndCut
from llm_pruner.shape.draft import draft
from llm_pruner.shape.request import Budget
from tests import REPOSITORY
from tests.support import tiny


def test_parameters_in_messages_become_flags():
    message = "use a smaller `nsamples`, `dtype=bfloat16` or `lm_eval ls tasks`; `teacher` is no option of it"
    expected = "use a smaller --nsamples, --dtype bfloat16 or `lm_eval ls tasks`; `teacher` is no option of it"
    assert with_flags(message, PruneOptions) == expected


def test_parameters_of_a_budget_become_the_flags_of_prune():
    with pytest.raises(PlanError, match="^`memory` 1GB") as error:
        draft(Budget(memory="1GB"), tiny.model("llama").config, ScoreAndCut())
    assert with_flags(str(error.value), PruneOptions).startswith("--target_memory 1GB: the model has ")


def test_every_parameter_in_a_message_is_an_option_of_a_command():
    every = {name for command in COMMANDS.values() for name in fields_of(command.options)} | set(FLAGS)
    named = set()
    for path in (REPOSITORY / "llm_pruner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                named |= set(re.findall(r"(?<!`)`([a-z_]+)(?:=[^`\s]+)?`(?!`)", ast.unparse(node)))
    assert len(named) > 15
    assert named - every <= {"text", "instruction", "input", "output", "messages", "role", "content", "usual", "task"}
