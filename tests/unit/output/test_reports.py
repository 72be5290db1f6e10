"""Reports as objects and as JSON, and what is written beside a checkpoint."""

import json
import math
import re
from dataclasses import FrozenInstanceError, replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_pruner import serialisation
from llm_pruner.calibration.mixtures import Drawn, Source
from llm_pruner.errors import UsageError
from llm_pruner.importance.selection import quantiles
from llm_pruner.model.axes import HEADS, HIDDEN, MLP
from llm_pruner.output import charts, lineage, reports, saving
from llm_pruner.output.card import card
from llm_pruner.output.page import page
from llm_pruner.output.reports import Calibration, CalibrationText, Evaluation, Measured, Point, Reconstruction, Sides
from llm_pruner.shape.draft import draft, groups_to_score
from tests.support import tiny
from tests.support.in_memory import asked
from tests.support.reports import as_json, evaluated, pruned, recovered, sparse
from tests.support.steps import options_for


@pytest.mark.parametrize(
    ("case", "importance", "axes"),
    [("llama", "magnitude", [HIDDEN, HEADS, MLP]), ("llama_multi_head", "flap", [HEADS, MLP])],
)
def test_score_distributions_are_the_quantiles_of_the_units_scores(case, importance, axes):
    model = tiny.model(case)
    _, request, method = asked(options_for(tiny.ALL, importance))
    made = draft(request, model.config, method)
    groups = groups_to_score(made)
    found = method.measure(model, made, groups, [*tiny.tokens(6, 16)])
    spread = quantiles(found.scores, made.traced.groups)
    assert sorted(spread) == sorted(axis.field for axis in axes)
    levels = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0])
    units = {group.name: group.units for group in groups}
    for axis in axes:
        names = ["hidden"] if axis == HIDDEN else [f"layers.{layer}.{axis}" for layer in range(2)]
        assert len(spread[axis.field]) == len(names)
        for row, name in zip(spread[axis.field], names):
            one_each = found.scores[name].view(units[name], -1).sum(1)  # FLAP scores the columns of a head
            torch.testing.assert_close(torch.tensor(row), torch.quantile(one_each, levels), rtol=1e-5, atol=0)


@pytest.mark.slow
def test_a_checkpoint_gets_report_page_and_card(tmp_path):
    made = saving.write_report(tmp_path, pruned())
    assert sorted(made.files) == ["README.md", "report.html"]
    assert reports.read(tmp_path / "report.json") == made
    assert replace(made, files={}) == pruned()
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == as_json(pruned, files=made.files) | {
        name: stored[name] for name in ("base_model", "dense_perplexity", "made_from")
    }
    assert (tmp_path / "report.html").read_text() == page([pruned()])
    assert "| hidden_size | 48 | 48 |" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("function", "file"), [("page", "report.html"), ("card", "README.md")])
def test_what_cannot_be_drawn_costs_no_checkpoint(tmp_path, monkeypatch, caplog, function, file):
    def fail(*_):
        raise failure

    monkeypatch.setattr(saving, function, fail)
    failure: Exception = ZeroDivisionError("by zero\nat all")
    saving.write_report(tmp_path, pruned())
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "report.html", "report.json"} - {file}
    (record,) = caplog.records
    assert record.getMessage() == f"{file} could not be drawn (ZeroDivisionError, by zero); everything else is there"
    assert not record.exc_info
    saving.write_report(tmp_path, pruned(options={"traceback": True}))
    assert caplog.records[-1].exc_info
    failure = OSError("no space left on device")
    with pytest.raises(OSError, match="no space"):
        saving.write_report(tmp_path, pruned())


def test_values_of_odd_types_are_written_all_the_same(tmp_path):
    made = replace(pruned(), options={"far": float("inf"), "where": tmp_path, "set": {1}, "pair": (1, float("nan"))})
    saving.write_report(tmp_path, made)
    assert json.loads((tmp_path / "report.json").read_text())["options"] == {
        "far": None, "where": str(tmp_path), "set": "{1}", "pair": [1, None],
    }  # fmt: skip


def test_reports_do_not_change_and_are_no_mappings():
    made = pruned()
    with pytest.raises(FrozenInstanceError, match="'model'"):
        made.model = "another"
    with pytest.raises(TypeError, match="not subscriptable"):
        made["model"]


def test_each_step_has_its_report():
    assert {step: kind.__name__ for step, kind in reports.REPORTS.items()} == {
        "prune": "PruneReport", "recover": "RecoverReport", "sparsify": "SparsifyReport", "sweep": "SweepReport",
        "evaluate": "EvaluateReport", "pipeline": "PipelineReport",
    }  # fmt: skip
    for make in (pruned, recovered, sparse, evaluated):
        made = make()
        assert (made.to_dict()["step"], made.to_dict()["schema"]) == (made.step, reports.SCHEMA)
        assert type(made) is reports.REPORTS[made.step]
        assert as_json(make).items() <= made.to_dict().items() or make is recovered
        assert reports.from_dict(json.loads(json.dumps(made.to_dict())), "x") == made


NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False, min_value=0, max_value=1e300), st.just(math.nan))
NAMES = st.text(max_size=8)
COUNTS = st.integers(1, 2**62)
WIDTHS = st.dictionaries(NAMES, st.one_of(st.integers(0, 2**31), st.lists(st.integers(0, 2**31), min_size=1)))


@settings(deadline=None)
@given(
    perplexity=st.builds(Measured, st.none() | NUMBERS, st.none() | NUMBERS),
    parameters=st.builds(Sides, COUNTS, COUNTS),
    widths=st.builds(Sides, WIDTHS, WIDTHS),
    evaluation=st.none() | st.builds(Evaluation, NAMES, COUNTS, COUNTS, st.none() | NAMES),
    reconstruction=st.builds(
        Reconstruction, kl=NUMBERS, kl_plain=st.dictionaries(NAMES, NUMBERS),
        stream_errors=st.lists(NUMBERS),
    ),
    seed=st.integers(-(2**63), 2**63), masked=st.booleans(), importance=NAMES,
)  # fmt: skip
def test_every_pruning_comes_back_from_json(**fields):
    made = replace(pruned(), **fields)
    text = json.dumps(made.to_dict(), allow_nan=False)
    again = reports.from_dict(json.loads(text), "x")
    assert again == made
    assert json.dumps(again.to_dict()) == text


@settings(deadline=None)
@given(
    history=st.lists(
        st.builds(
            Point, seconds=st.floats(0, 1e9), step=st.none() | st.integers(0, 10**9), loss=st.none() | NUMBERS,
            perplexity=st.none() | NUMBERS,
        )
    ),
    recovered_share=st.none() | st.floats(-1e9, 1e9),
)  # fmt: skip
def test_every_recovery_comes_back_from_json(**fields):
    made = replace(recovered(), **fields)
    assert reports.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False)), "x") == made


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(make=st.sampled_from([pruned, recovered, sparse, evaluated]), data=st.data())
def test_whatever_a_field_holds_is_refused_in_one_line_or_drawn(make, data):
    values = as_json(make)
    name = data.draw(st.sampled_from(sorted(values)))
    values[name] = data.draw(ANY)
    refused = ""
    try:
        report = reports.from_dict(values, "report.json")
    except UsageError as error:
        refused = str(error)
    if refused:
        assert refused.startswith("report.json")
        assert "\n" not in refused
        return
    with patch.object(charts.importlib.util, "find_spec", lambda name: None):
        assert page([], report) if make is evaluated else page([report])
        assert make is evaluated or card(report)


@pytest.mark.parametrize(
    ("report", "warning"),
    [
        (pruned(perplexity={"before": 20.0, "after": 60.0}), None),
        (pruned(perplexity={"before": 20.0, "after": 61.0}), "perplexity is 3.0 times the dense model's.*remove less"),
        (pruned(perplexity={"before": 20.0, "after": 24_600.0}), "perplexity is 1,230.0 times"),
        (pruned(perplexity={"before": 20.0, "after": None}), None),
        (replace(pruned(), perplexity=Measured(20.0, math.inf)), None),
        (pruned(perplexity={}), None),
        (pruned(perplexity={"before": 20.0, "after": 30.0}, made_from=pruned(perplexity={"before": 5.0})), "is 6.0"),
        (pruned(perplexity={"before": 20.0, "after": 90.0}, made_from=pruned(evaluation={})), None),
        (recovered(perplexity={"before": 90.0, "after": 100.0}), "is 5.0 times.*train longer"),
        (recovered(perplexity={"before": 9.0, "after": 50.0}, dense_perplexity=None, made_from=None), None),
        (sparse(perplexity={"before": 2.0, "after": 50.0}, made_from=None), "is 25.0 times.*keep a larger share"),
    ],
)
def test_a_checkpoint_that_is_useless_says_so(report, warning):
    """In card and page too."""
    told = lineage.warning(report)
    assert bool(told) == bool(warning)
    assert warning is None or re.search(warning, told)
    assert ("too much to be useful" in card(report)) == bool(warning)
    assert ("too much to be useful" in page([report])) == bool(warning)


def test_what_is_told_of_calibration_texts():
    alone = Calibration.of("c4", 128, 64, None)
    assert (alone.data, alone.nsamples, alone.sources, alone.texts) == ("c4", 128, None, "c4")
    several = Calibration.of(("c4", "self=0.25"), 8, 64, None)
    assert several.sources == [CalibrationText("c4", 0.75, 6), CalibrationText("self", 0.25, 2)]
    assert (several.data, several.texts) == ("c4 self=0.25", "c4 (6), self (2)")
    told = pruned(calibration=serialisation.plain(several))
    assert reports.from_dict(told.to_dict(), "report.json").calibration == several


def test_what_was_drawn_is_told_where_it_is_other_than_what_was_asked_for():
    """A file held fewer records than were asked for, and the model wrote in place of a text."""
    sources = (Source("records.jsonl", 0.5), Source("self", 0.5))
    drawn = Drawn(sources, ([1, 2], None), 4, 64, 0, None, missing=("c4",))
    found = Calibration.of(("records.jsonl", "c4"), 8, 64, drawn)
    assert found.sources == [CalibrationText("records.jsonl", 0.5, 2), CalibrationText("self", 0.5, 4)]
    assert (found.data, found.nsamples) == ("records.jsonl c4", 6)
