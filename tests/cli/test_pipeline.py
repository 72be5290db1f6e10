"""The pipeline: three stages by their own commands, each only when it has to run."""

import json
import re

import pytest
import yaml

from llm_pruner.cli import pipeline, stages
from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.stages import PipelineOptions, stage_options
from llm_pruner.config import options as flags
from llm_pruner.config import pipeline as pipeline_options
from llm_pruner.errors import RunError, UsageError
from llm_pruner.model.demo.text import held_out
from llm_pruner.output import manifest
from llm_pruner.output.reports import Measured
from tests import REPOSITORY
from tests.support.reports import as_json, evaluated, pruned, recovered

STAGES = {
    "prune": {"pruning_ratio": 0.5, "importance": "magnitude"},
    "recover": {"steps": 2},
    "evaluate": {"eval_data": "demo"},
}


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The stages that ran, faked: each writes the output that its command would."""
    found = []
    reports = {"prune": pruned, "recover": recovered}

    def fake(stage, values, folder, options):
        found.append(stage)
        if stage == "evaluate":
            (folder / "evaluation.json").write_text(json.dumps(as_json(evaluated, models=[], ratios={}, dense="")))
            return
        made = folder / {"prune": "pruned", "recover": "recovered"}[stage]
        made.mkdir(exist_ok=True)
        (made / "config.json").write_text(json.dumps(values, default=str))
        files = manifest.listed(made, but=(manifest.REPORT,))
        report = as_json(reports[stage], perplexity={"before": 2.0, "after": 3.0}, files=files)
        (made / "report.json").write_text(json.dumps(report))

    monkeypatch.setattr(pipeline, "_run_stage", fake)
    monkeypatch.setattr(pipeline, "page", lambda *_: "page")
    return found


def asked(tmp_path, **sections) -> PipelineOptions:
    stages = {name: {**STAGES[name], **sections.get(name, {})} for name in STAGES}
    return PipelineOptions(model="demo", folder=str(tmp_path / "run"), **stages)


def test_a_stage_runs_only_when_something_it_reads_has_changed(tmp_path, ran):
    summary = pipeline.run(asked(tmp_path))
    assert ran == ["prune", "recover", "evaluate"]
    assert summary.perplexity["recover"] == Measured(2.0, 3.0)
    assert (tmp_path / "run" / "report.html").read_text() == "page"

    def again(**sections):
        ran.clear()
        return pipeline.run(asked(tmp_path, **sections))

    assert all(stage.skipped for stage in again().stages)
    assert ran == []
    again(evaluate={"speed": True})
    assert ran == ["evaluate"]
    again(evaluate={"speed": True}, recover={"steps": 3})
    assert ran == ["recover", "evaluate"], "what follows from another input is made again"
    (tmp_path / "run" / "recovered" / "report.json").unlink()
    (tmp_path / "run" / "recovered" / "config.json").unlink()
    (tmp_path / "run" / "recovered").rmdir()
    again(evaluate={"speed": True}, recover={"steps": 3})
    assert ran[0] == "recover"


def test_a_text_with_other_content_is_another_input(tmp_path, ran):
    (tmp_path / "train.txt").write_text("one")
    sections = {"recover": {"data": str(tmp_path / "train.txt")}}
    pipeline.run(asked(tmp_path, **sections))
    ran.clear()
    (tmp_path / "train.txt").write_text("two")
    pipeline.run(asked(tmp_path, **sections))
    assert "recover" in ran
    assert "prune" not in ran


def test_a_stage_that_fails_is_not_done(tmp_path, ran, monkeypatch):
    plain = pipeline._run_stage

    def failing(stage, *rest):
        if stage == "recover":
            raise RunError("recover failed")
        plain(stage, *rest)

    monkeypatch.setattr(pipeline, "_run_stage", failing)
    with pytest.raises(RunError, match="recover failed"):
        pipeline.run(asked(tmp_path))
    monkeypatch.setattr(pipeline, "_run_stage", plain)
    ran.clear()
    pipeline.run(asked(tmp_path))
    assert ran == ["recover", "evaluate"]


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


def test_folders_that_hold_something_else(tmp_path, ran):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something else than a pipeline"):
        pipeline.run(asked(tmp_path))
    assert ran == []


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


def test_all_of_it_on_the_demo_model(command_of, tmp_path):
    """By its real commands: prune, recover, evaluate; once more, and nothing runs."""
    (tmp_path / "text.txt").write_text(held_out()[:20_000], encoding="utf-8")
    fast = {name: {**own, "eval_data": "text.txt"} for name, own in STAGES.items()}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(fast))
    done = command_of("pipeline", "--config", "p.yaml", "--model", "demo", "--folder", "run", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    pruned, recovered = (summary["perplexity"][stage] for stage in ("prune", "recover"))
    assert recovered["before"] == pytest.approx(pruned["after"], rel=1e-6)
    for name in ("prune.log", "recover.log", "evaluate.log", "evaluation.json", "report.html", "recovered/report.json"):
        assert (tmp_path / "run" / name).is_file()
    assert re.search(r"perplexity after: [\d.]+", (tmp_path / "run" / "recover.log").read_text())
    again = command_of("pipeline", "--config", "p.yaml", "--model", "demo", "--folder", "run")
    assert again.stdout.count("; skipped") == 3
