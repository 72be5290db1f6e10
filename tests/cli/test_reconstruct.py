"""A whole run with a reconstruction, files included."""

import json
import math
from dataclasses import replace

import pytest

import llm_pruner
from llm_pruner.methods import reconstruct as module
from llm_pruner.output.reports import PruneReport

pytestmark = pytest.mark.usefixtures("quick_reload")
QUICK = {"calibration_data": "demo", "nsamples": 16, "calibration_seq_len": 64, "epochs": 1, "eval_data": "none"}


def run(folder, **asked) -> PruneReport:
    report = llm_pruner.prune_checkpoint(
        llm_pruner.PruneOptions(model="demo", dtype="float32", save_model=str(folder), **QUICK | asked)
    )
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    return report


@pytest.mark.slow
def test_layers_that_went_are_in_the_report(tmp_path):
    report = run(tmp_path / "out", target="num_hidden_layers=3,intermediate_size=400", nsamples=48, epochs=2)
    assert (report.layers.before, report.layers.after) == (4, 3)
    assert len(report.layers.kept) == 3
    assert "| layers | 4 | 3 |" in (tmp_path / "out" / "README.md").read_text()
    assert report.reconstruction.kl < report.reconstruction.kl_plain["flap"]
    assert set(report.seconds) >= {"search", "reconstruct", "baseline", "save", "verify"}


@pytest.mark.slow
def test_a_search_is_in_the_report(tmp_path):
    report = run(tmp_path / "out", param_ratio=0.3, search_minutes=0.05)
    found = report.reconstruction.finals or report.reconstruction.search
    assert {**found[0].widths} == report.widths.after
    assert report.removed["decoder"] == pytest.approx(0.3, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_a_reconstruction_that_broke_is_no_loss(kl, tmp_path, monkeypatch, capsys):
    """FLAP's biases are not in the class, so this is one that brings its own, which is said; JSON holds no NaN."""
    own = module.reconstruct
    monkeypatch.setattr(module, "reconstruct", lambda *rest, **more: replace(own(*rest, **more), kl=kl, errors=[kl]))
    report = run(tmp_path / "out", prune="mlp=0.5")
    stored = json.loads((tmp_path / "out" / "report.json").read_text())["reconstruction"]
    assert (stored["kl"], stored["stream_errors"]) == (None, [None])
    assert (report.importance, report.compensate) == ("flap", "bias")
    assert "note: plain flap is better here" in capsys.readouterr().out


def test_what_does_not_go_with_it_is_named(capsys):
    llm_pruner.prune_checkpoint(llm_pruner.PruneOptions(model="demo", pruning_ratio=0.5, mask_only=True, dry_run=True))
    assert "note: pruning by magnitude: mask_only does not go with a reconstruction" in capsys.readouterr().out
