"""The options of `pipeline`: what stages share, and a section for each. Imports nothing heavy."""

from typing import Any

from llm_pruner.config.groups import (
    OUTPUT,
    SHARED,
    DtypeOptions,
    EvaluationTextOptions,
    FolderOptions,
    ModelOptions,
    RunOptions,
)
from llm_pruner.config.options import command_options, option

STAGES = ("prune", "recover", "evaluate")
PROGRAM = "llm-pruner pipeline"


@command_options(
    model={"help": "the dense model: local folder, hub id or `demo`"},
    dtype={"default": None, "group": SHARED},
    device={"default": None, "group": SHARED},
    seed={"default": None, "group": SHARED},
    eval_data={"group": SHARED, "help": "text to score on: wikitext2, demo, a text file, or none"},
    max_seq_len={"default": None, "group": SHARED},
    folder={"help": "folder for all outputs: both checkpoints, logs, evaluation, summary"},
    config={"help": "YAML file with the stages and other options; flags win over it"},
)
class PipelineOptions(RunOptions, EvaluationTextOptions, FolderOptions, DtypeOptions, ModelOptions):
    """Every option of `pipeline`, by its flag's name; and the sections of its YAML, with the options of each stage."""

    launcher: str | None = option(
        None, OUTPUT, "command that starts the recovery instead of python, such as "
        "'accelerate launch --num_processes 4'",
        "COMMAND",
    )  # fmt: skip
    prune: dict[str, Any] | None = None
    recover: dict[str, Any] | None = None
    evaluate: dict[str, Any] | None = None
