"""The README: its commands can be typed, its figures are those that the benchmarks keep."""

import json
import re
import shlex
import types
from pathlib import Path

import pytest

import llm_pruner
from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.main import parse
from llm_pruner.config.options import fields_of

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def result(name: str) -> dict:
    return json.loads((REPOSITORY / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def commands(start: str) -> list[str]:
    lines = [line.split("#")[0].strip() for line in README.splitlines()]
    return [line.removeprefix(start) for line in lines if line.startswith(start)]


def test_commands_parse(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    found = [shlex.split(line) for line in commands("python prune_llm.py")]
    assert found
    for arguments in found:
        assert parse(arguments).model


def test_commands_of_the_package_parse(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    found = [shlex.split(line) for line in commands("python -m llm_pruner ")]
    assert {name for name, *_ in found} == {"recover", "evaluate", "pipeline", "sparsify"}
    for name, *arguments in found:
        assert parse(arguments, COMMANDS[name]).model


def test_options_in_the_text_exist():
    named = set(re.findall(r"--([a-z_]+)", README)) - {"help", "config", "gpu"}
    assert named <= {name for command in COMMANDS.values() for name in fields_of(command.options)}
    assert len(named) > 12


def test_make_targets_and_scripts_exist():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
    for line in commands("python benchmarks/"):
        assert (REPOSITORY / "benchmarks" / line.split()[0]).is_file()


def test_perplexities_are_those_measured():
    demo, magnitude = result("demo"), result("magnitude")
    for side, value in demo["perplexity"].items():
        assert f"perplexity {side}: {value:.2f}" in README
    assert f"dense {magnitude['dense']:.2f}" in README
    for row in magnitude["table"]:
        line = f"| {row['pruning_ratio']} | {row['parameters']:,} | {row['magnitude']:.1f} | {row['random']:.1f} |"
        assert line in README


def test_quality_is_what_was_measured():
    """The table that benchmarks/quality.py wrote is in the README, and its numbers are those of the JSON."""
    quality = result("quality")
    table = (REPOSITORY / "benchmarks" / "results" / "quality.md").read_text(encoding="utf-8")
    assert table in README
    assert (REPOSITORY / "benchmarks" / "results" / "quality.png").is_file()
    assert "benchmarks/results/quality.png" in README
    for row in quality["table"]:
        line = next(line for line in table.splitlines() if line.startswith(f"| {row['method']} |"))
        for ratio in ("0.2", "0.3", "0.5"):
            assert f"| {row[ratio]['perplexity']:.1f}" in line
    removed = {
        ratio: [run["removed"] for key, run in quality["runs"].items() if f"| {ratio} |" in key]
        for ratio in (0.2, 0.3, 0.5)
    }
    assert all(abs(share - ratio) <= 0.01 for ratio, found in removed.items() for share in found)
    assert len(quality["runs"]) >= 100
    first, *_, last = (layer["rank_correlation"] for layer in quality["neurons"])
    shares = [layer["mean_share"] for layer in quality["neurons"]]
    for value in (first, last, min(shares), max(shares)):
        assert f"{value:.2f}" in README
    for value in quality["bias_at_half"].values():
        assert f"{value:.1f}" in README


def test_the_best_method_is_what_was_measured():
    """Its tables are those that benchmarks/best.py wrote, with the JSON's figures, and it keeps what issue and text
    promise: at most 0.45 of the published methods' loss as a stock checkpoint, 0.40 with widths per layer."""
    best, quality = result("best"), result("quality")
    tables = (REPOSITORY / "benchmarks" / "results" / "best.md").read_text(encoding="utf-8").strip().split("\n\n")
    assert len(tables) == 4
    for table in tables:
        assert table in README
    text = "\n".join(tables)
    for key, share in best["shares"].items():
        assert f"{best['runs'][key]['perplexity']:.1f} ({share:.2f})" in text
    for name, most in (("best", 0.45), ("best, per layer", 0.40)):
        shares = quality["against_best_published"][name].values()
        assert max(shares) <= most
        assert all(f"{share:.2f}" in README for share in shares)
    assert len({key.split(" | ")[0] for key in best["shares"]}) >= 3
    for share, most in ((0.25, 0.20), (0.5, 0.25)):
        assert best["shares"][f"llama-6m | every width {share} | best"] <= most
    cost = best["runs"]["llama-6m | cost"]
    assert cost["seconds"]["all"] <= 180
    assert f"{cost['seconds']['all']:.0f} s" in README
    for value in (best["runs"]["scaling"]["twice_the_layers"], best["runs"]["scaling"]["twice_the_text"]):
        assert f"{value:.1f}×" in README


def test_calibration_cost_is_what_was_measured():
    ratios = result("calibration_cpu")["ratio_to_plain"]
    for row, name in (
        ("calibration for FLAP and Wanda-sp (mean, variance, norm)", "moments"),
        ("calibration with the mean of absolute values besides", "both"),
        ("calibration for AMP's heads", "head norm"),
    ):
        assert f"| {row} | {ratios[name]:.2f}× |" in README
    assert ratios["both"] <= 1.15


def test_speed_is_what_was_measured():
    tracing, score_cut = result("tracing"), result("score_cut_cpu")
    for row, value in (
        ("trace and plan, Llama-3.1-8B shape, no weights", f"{tracing['llama_8b_seconds']:.1f} s"),
        ("the same, 70B shape (80 layers)", f"{tracing['llama_70b_seconds']:.1f} s"),
        ("160 layers against 20", f"{tracing['ratio_of_160_to_20_layers']:.1f}× the time"),
        ("score and cut, random 1.1 B-parameter Llama in bfloat16", f"{score_cut['ratio']:.2f}×"),
        ("its peak memory", f"{score_cut['peak_over_model']:.2f}×"),
    ):
        assert f"| {row} | {value} |" in README


@pytest.mark.parametrize(
    "options",
    [
        {"pruning_ratio": -0.5},
        {"pruning_ratio": float("nan")},
        {"pruning_ratio": 0.5, "round_to": 0},
        {"dtype": "bf16"},
    ],
)
def test_options_made_in_python_are_checked_too(options):
    wrong = llm_pruner.PruneOptions(model="demo", no_save=True, **options)
    with pytest.raises(llm_pruner.PrunerError):
        llm_pruner.run(wrong)


def test_families_are_named():
    for family in llm_pruner.FAMILIES:
        assert f"`{family}`" in README


@pytest.mark.parametrize("name", llm_pruner.__all__)
def test_public_names_are_not_hidden_by_modules(name):
    """Importing a submodule binds its name on the package: a public function must not share it."""
    getattr(llm_pruner, name)
    assert not isinstance(getattr(llm_pruner, name), types.ModuleType)


def test_recovery_is_what_was_measured():
    """At least half of the gap comes back by distillation and a third by LoRA, in three minutes of training."""
    recover = result("recover_cpu")
    for side, value in (("dense", recover["perplexity"]["before"]), ("pruned", recover["perplexity"]["after"])):
        assert f"{side} {value:.1f}" in README
    for name, least in (("distil", 0.5), ("lora", 1 / 3)):
        run = recover["runs"][name]
        assert run["recovered_share"] >= least
        assert run["training"]["minutes"] <= 3
        assert f"| {name} | {run['perplexity']:.1f} | {run['recovered_share']:.0%} |" in README


def test_ratios_of_speed_are_those_measured():
    found = result("speed_cpu")["ratio"]["eager"]
    for what in ("prefill", "decode"):
        value = found[what]
        cell = f"{value['median']:.2f}× ({value['low']:.2f} – {value['high']:.2f})"
        assert f"| {what} tokens/s, every width halved against dense | {cell} |" in README


def test_sparse_models_are_what_was_measured():
    """And the tables bear out what the text beside them says."""
    found = result("sparse")
    tables = (REPOSITORY / "benchmarks" / "results" / "sparse.md").read_text(encoding="utf-8").strip().split("\n\n")
    assert len(tables) == 3
    for table in tables:
        assert table in README
    after = {run["pattern"]: run["perplexity"]["after"] for run in found["runs"]}
    massive = {run["pattern"]: run["perplexity"]["after"] for run in found["massive"]["runs"]}
    for value in (*after.values(), *massive.values()):
        assert f"{value:,.1f}" in README
    dense = found["runs"][0]["perplexity"]["before"]
    assert after["act_8_16"] < after["act_2_4"]
    assert after["act_0.2"] < 1.01 * dense
    for pattern in ("2_4", "8_16"):
        assert after[f"act_{pattern}"] < after[f"weight_{pattern}"]
        assert after[f"act_{pattern}_best"] == min(
            value for name, value in after.items() if name.startswith(f"act_{pattern}") and "qkvo" not in name
        )
    assert massive["act_8_16_best"] < after["act_8_16"]
    assert massive["act_8_16_best"] < 1.01 * after["act_8_16_best"]


def test_ratios_of_sparse_decoding_are_those_measured():
    found = result("sparse_decode_cpu")
    for dtype, layers in found["products"].items():
        for name, layer in layers.items():
            cells = [
                f"{row['ratio']:.2f}×"
                for kept in (0.75, 0.5, 0.25, 0.1)
                for row in layer["patterns"]
                if row["pattern"] == "threshold" and abs(row["kept"] - kept) < 0.05
            ]
            assert f"| {name}, {dtype} | {' | '.join(cells)} |" in README
    worst = max(row["error"] for own in found["products"]["bfloat16"].values() for row in own["patterns"])
    assert f"{100 * worst:.1f} % away from plain torch" in README
    for name, model in found["models"].items():
        ratio = model["ratio"]["eager"]["decode"]
        assert f"| {name} | {ratio['median']:.2f}× ({ratio['low']:.2f} – {ratio['high']:.2f}) |" in README


def test_promises_are_what_the_fault_suite_counted():
    """Its tables are those that benchmarks/faults.py wrote, and no promise was broken."""
    faults = result("faults")
    tables = (REPOSITORY / "benchmarks" / "results" / "faults.md").read_text(encoding="utf-8")
    for table in tables.strip().split("\n\n"):
        assert table in README
    assert faults["all"]["inputs"] >= 400
    assert faults["all"]["inputs"] == faults["all"]["refused"] + faults["all"]["harmless"]
    assert not faults["failures"]
    assert not faults["errors"]
    assert all(cut["neither_old_nor_new"] == 0 for cut in faults["power_cuts"].values())
