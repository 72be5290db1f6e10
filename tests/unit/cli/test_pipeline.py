"""The pipeline: three stages by their own commands, each only when it has to run."""

import json

import pytest

from llm_pruner.cli import pipeline
from llm_pruner.cli.stages import PipelineOptions
from llm_pruner.errors import RunError, UsageError
from llm_pruner.output import manifest
from llm_pruner.output.reports import Measured
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

    assert [stage.skipped for stage in again().stages] == [True] * 3
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


def test_the_content_of_a_text_with_a_share_is_an_input_and_so_is_the_share(tmp_path, ran):
    text = tmp_path / "text.txt"

    def stages(content: str, data: list[str]) -> list[str]:
        text.write_text(content)
        ran.clear()
        pipeline.run(asked(tmp_path, prune={"importance": "amp", "calibration_data": data}))
        return [*ran]

    one, other = ["demo", f"{text}=0.25"], ["demo", f"{text}=0.5"]
    assert stages("one", one) == ["prune", "recover", "evaluate"]
    assert stages("one", one) == []
    assert "prune" in stages("two", one)
    assert "prune" in stages("two", other)
    assert stages("two", other) == []


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


def test_folders_that_hold_something_else(tmp_path, ran):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="something else than a pipeline"):
        pipeline.run(asked(tmp_path))
    assert ran == []
