"""Stages of a pipeline, read as their own commands would read them."""

import pytest
import yaml

from llm_pruner.cli import stages
from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.stages import PipelineOptions, stage_options
from llm_pruner.config import options as flags
from llm_pruner.config import pipeline as pipeline_options
from llm_pruner.errors import UsageError
from tests import REPOSITORY


def test_what_each_stage_is_told(tmp_path):
    options = PipelineOptions(
        model="demo", folder="runs/x", seed=7, eval_data="demo", max_seq_len=64,
        prune={"importance": "amp", "iteration": 1, "seed": 3}, recover={"method": "distil"}, evaluate={},
    )  # fmt: skip
    prune, recover, evaluate = (stage_options(options, stage)[1] for stage in ("prune", "recover", "evaluate"))
    assert (prune.model, prune.save_model, prune.seed) == ("demo", "runs/x/pruned", 3)
    assert (recover.model, recover.teacher, recover.save_model) == ("runs/x/pruned", "demo", "runs/x/recovered")
    assert (recover.seed, recover.max_seq_len) == (7, 64)
    assert (evaluate.dense, evaluate.model) == ("demo", ("runs/x/pruned", "runs/x/recovered"))
    assert evaluate.eval_data == ("demo",)
    short = PipelineOptions(model="demo", folder="runs/x", prune={"pruning_ratio": 0.5}, evaluate={})
    assert stage_options(short, "recover") is None
    assert stage_options(short, "evaluate")[1].model == ("runs/x/pruned",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune: {pruning_ratio: 2.0}", "prune: .*not a ratio"),
        ("prune: {pruning_ratio: 0.5}\nrecover: {step: 3}", "line 2: unknown option 'step'; did you mean 'steps'"),
        ("prune: {pruning_ratio: 0.5}\nrecovr: {}", "line 2: unknown option 'recovr'; did you mean 'recover'"),
        ("prune: {pruning_ratio: 0.5, save_model: x}", "save_model is decided by the pipeline"),
        ("prune: {pruning_ratio: 0.5, pruning_ratio: 0.6}", "set twice"),
        ("prune: half", "prune must be a mapping"),
        ("recover: {steps: 3}", "starts with a `prune:`"),
        ("prune: {pruning_ratio: 5e-1}", "write 0.5"),
        ("prune: {pruning_ratio: 0.5}\nrecover: {epochs: 0}", "recover: epochs"),
    ],
)
def test_yamls_that_cannot_be_meant(tmp_path, text, message):
    path = tmp_path / "pipeline.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        stages.resolve({"model": "demo", "folder": str(tmp_path / "run")}, str(path))


def test_the_shipped_yamls_can_be_run():
    found = sorted(REPOSITORY.glob("configs/pipeline_*.yaml"))
    assert found
    for path in found:
        options = stages.resolve({"model": "demo", "folder": "runs/x"}, str(path))
        assert all(stage_options(options, stage) for stage in ("prune", "recover", "evaluate"))
    recoveries = sorted(REPOSITORY.glob("configs/recover/*.yaml"))
    assert recoveries
    for path in recoveries:
        assert COMMANDS["recover"].resolve({"model": "demo"}, str(path)).method
    known = yaml.safe_load((REPOSITORY / "configs" / "pipeline_amp.yaml").read_text())
    assert set(known) <= set(flags.fields_of(PipelineOptions)) | set(pipeline_options.STAGES)
