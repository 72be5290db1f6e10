"""A whole run with a reconstruction, files included."""

import json
import math
import re
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import AutoModelForCausalLM

import llm_pruner
import llm_pruner.errors
from llm_pruner.cli import stages
from llm_pruner.cli.requests import resolve
from llm_pruner.methods import reconstruct as module
from llm_pruner.output import places, reports
from llm_pruner.output.reports import PruneReport

pytestmark = pytest.mark.usefixtures("quick_reload")
QUICK = {"calibration_data": "demo", "nsamples": 16, "calibration_seq_len": 64, "epochs": 1, "eval_data": "none"}


def run(folder, **asked) -> PruneReport:
    report = llm_pruner.prune_checkpoint(
        llm_pruner.PruneOptions(**{"model": "demo", "dtype": "float32", "save_model": str(folder)} | QUICK | asked)
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


@pytest.mark.slow
def test_further_ratios_are_checkpoints_of_their_own(tmp_path, capsys, monkeypatch):
    own, models, left = module.optimise_together, [], []

    def noted(model, *rest):
        left.append(sum(one() is not None for one in models))
        models.append(weakref.ref(model))
        return own(model, *rest)

    monkeypatch.setattr(module, "optimise_together", noted)
    report = run(tmp_path / "out", param_ratio=0.2, further_ratios="0.3,0.5", search_minutes=0.0)
    assert report.removed["decoder"] == pytest.approx(0.2, abs=0.01)
    for ratio in (0.3, 0.5):
        folder = tmp_path / f"out-param_ratio{ratio}"
        stored = reports.read(folder / "report.json")
        assert stored.removed["decoder"] == pytest.approx(ratio, abs=0.01)
        assert (stored.options["param_ratio"], stored.options["further_ratios"]) == (ratio, None)
        assert stored.options["save_model"] == str(folder)
        assert stored.model == stored.base_model == "demo", "the dense model is what it was made of"
        assert stored.calibration == report.calibration
        assert set(stored.seconds) >= {"reconstruct", "optimise", "save", "verify"}
        assert "search" not in stored.seconds, "these are of the first"
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert sum(p.numel() for p in loaded.parameters()) == stored.parameters.after
    assert capsys.readouterr().out.count("saved ") == 3
    assert left == [0, 0, 0], "a model that has been saved is let go"


def test_a_dry_run_shows_all_sizes(tmp_path, capsys):
    asked = llm_pruner.PruneOptions(model="demo", param_ratio=0.2, further_ratios="0.5", dry_run=True)
    plan = llm_pruner.prune_checkpoint(asked)
    assert plan.removed()["decoder"] == pytest.approx(0.2, abs=0.01)
    out = capsys.readouterr().out
    assert re.findall(r"attention \+ MLP .* (0\.\d+)\n", out) == ["0.2000", "0.5000"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_that_is_taken_is_found_before_anything_is_done(slash, tmp_path):
    (tmp_path / "out-param_ratio0.5").mkdir()
    (tmp_path / "out-param_ratio0.5" / "thesis.txt").write_text("years of work")
    with pytest.raises(llm_pruner.errors.UsageError, match="out-param_ratio0.5 is not empty"):
        run(tmp_path / "out", param_ratio=0.2, further_ratios="0.5", save_model=f"{tmp_path}/out{slash}")
    assert not (tmp_path / "out").exists()


def test_the_disk_has_room_for_all_sizes_or_nothing_is_done(tmp_path, monkeypatch):
    """5 MB of weights where 4 MB are free, of which each size alone takes less."""
    free = SimpleNamespace(free=places.MARGIN + 4_000_000)
    monkeypatch.setattr(places.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(llm_pruner.errors.RunError, match="the checkpoint needs"):
        run(tmp_path / "out", param_ratio=0.2, further_ratios="0.5", dtype="bfloat16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "how much?"),
        ({"pruning_ratio": 0.2}, "pruning_ratio and further_ratios exclude each other"),
        ({"target": "intermediate_size=64"}, "target and further_ratios exclude each other"),
        ({"prune": "mlp=0.5"}, "further_ratios follow a first one above 0: give `param_ratio`"),
        ({"param_ratio": 0.0}, "further_ratios follow a first one above 0"),
        ({"param_ratio": 0.5}, "further_ratios: 0.4,0.6 must be larger and larger than `param_ratio` 0.5"),
        ({"param_ratio": 0.2, "further_ratios": "0.5,0.4"}, "must be larger and larger"),
        ({"param_ratio": 0.2, "further_ratios": "0.5,x"}, "further_ratios: 'x' is not a ratio"),
        ({"param_ratio": 0.2, "further_ratios": "0.5,"}, "further_ratios: '' is not a ratio"),
        ({"param_ratio": 0.2, "method": "2ssp"}, "further_ratios belong to `method=reconstruct`, not to 2ssp"),
        ({"param_ratio": 0.2, "importance": "flap"}, "`further_ratios` belongs to `method=reconstruct`"),
        ({"param_ratio": 0.2, "global_epochs": 0}, "leave out `global_epochs=0`"),
        ({"param_ratio": 0.2, "prune": "hidden,mlp"}, "leave hidden out of `prune`"),
        ({"param_ratio": 0.2, "recover": "distil"}, "recover trains one checkpoint"),
    ],
)
def test_further_ratios_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(llm_pruner.errors.UsageError, match=message):
        resolve({"model": "demo", "further_ratios": "0.4,0.6"} | options)


@pytest.mark.parametrize(
    "flag", [{"importance": "flap"}, {"pruning_ratio": 0.5}, {"target": "intermediate_size=64"}, {"prune": "mlp=0.5"}]
)
def test_a_flag_that_says_otherwise_replaces_those_of_the_yaml(flag, tmp_path):
    (tmp_path / "own.yaml").write_text("param_ratio: 0.2\nfurther_ratios: '0.3,0.5'\n")
    given = {"model": "demo"} | flag
    assert resolve({"model": "demo"}, str(tmp_path / "own.yaml")).further_ratios == "0.3,0.5"
    assert resolve(given, str(tmp_path / "own.yaml")).further_ratios is None


def test_a_pipeline_makes_one_size(tmp_path):
    (tmp_path / "own.yaml").write_text("prune: {param_ratio: 0.2, further_ratios: '0.5'}\n")
    with pytest.raises(llm_pruner.errors.UsageError, match="leave out further_ratios"):
        stages.resolve({"model": "demo", "folder": str(tmp_path / "runs")}, str(tmp_path / "own.yaml"))
