"""What is written beside a checkpoint: the spread of the scores, the page, and what happens when it cannot be drawn."""

import json

import pytest
import torch

from llm_pruner.calibration.weights import Weights
from llm_pruner.importance import evidence
from llm_pruner.model.axes import HEADS, HIDDEN, MLP
from llm_pruner.model.groups import FIELD
from llm_pruner.output import report
from llm_pruner.output.page import html
from llm_pruner.shape.draft import groups_to_score, shape_of
from tests import tiny
from tests.reports import pruned
from tests.steps import options_for


@pytest.mark.parametrize(
    ("case", "importance", "kinds"),
    [("llama", "magnitude", [HIDDEN, HEADS, MLP]), ("llama_multi_head", "flap", [HEADS, MLP])],
)
def test_score_distributions_are_the_quantiles_of_the_units_scores(case, importance, kinds):
    model = tiny.model(case)
    options = options_for(tiny.ALL, importance)
    criterion = evidence.effective(options)
    shape = shape_of(options, model.config, criterion)
    groups = groups_to_score(shape)
    weights = Weights(dict(model.named_parameters()))
    found = evidence.gather(model, shape, groups, criterion, options, weights, [*tiny.tokens(6, 16)])
    spread = report.spread(found.scores, shape.groups)
    assert sorted(spread) == sorted(FIELD[kind] for kind in kinds)
    levels = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    units = {group.name: group.units for group in groups}
    for kind in kinds:
        names = ["hidden"] if kind == HIDDEN else [f"layers.{layer}.{kind}" for layer in range(2)]
        assert len(spread[FIELD[kind]]) == len(names)
        for row, name in zip(spread[FIELD[kind]], names):
            one_each = found.scores[name].view(units[name], -1).sum(1)  # FLAP scores the columns of a head
            torch.testing.assert_close(torch.tensor(row), torch.quantile(one_each, levels), rtol=1e-5, atol=0)


def test_a_checkpoint_gets_report_page_and_card(tmp_path):
    report.write(tmp_path, pruned())
    stored = json.loads((tmp_path / "report.json").read_text())
    assert sorted(stored.pop("files")) == ["README.md", "report.html"]
    assert stored == pruned()
    assert (tmp_path / "report.html").read_text() == html.page([pruned()])
    assert "| hidden_size | 48 | 48 |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("module", "function", "file"), [(html, "page", "report.html"), (report, "card", "README.md")])
def test_what_cannot_be_drawn_costs_no_checkpoint(tmp_path, monkeypatch, caplog, module, function, file):
    def fail(*_):
        raise failure

    monkeypatch.setattr(module, function, fail)
    failure: Exception = ZeroDivisionError("by zero\nat all")
    report.write(tmp_path, pruned())
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "report.html", "report.json"} - {file}
    (record,) = caplog.records
    assert record.getMessage() == f"{file} could not be drawn (ZeroDivisionError, by zero); everything else is there"
    assert not record.exc_info
    report.write(tmp_path, pruned(options={"traceback": True}))
    assert caplog.records[-1].exc_info
    failure = OSError("no space left on device")
    with pytest.raises(OSError, match="no space"):
        report.write(tmp_path, pruned())


def test_values_of_odd_types_are_written_all_the_same(tmp_path):
    report.write(tmp_path, pruned(note={"far": float("inf"), "where": tmp_path, "set": {1}}))
    assert json.loads((tmp_path / "report.json").read_text())["note"] == {
        "far": None, "where": str(tmp_path), "set": "{1}",
    }  # fmt: skip
