"""`sparsify` as a command: its YAMLs, what it measures, saves and reports, sweeps, and what it refuses."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from llm_pruner.cli import main as cli
from llm_pruner.cli.commands import COMMANDS
from llm_pruner.cli.sparsify import sparsify_checkpoint
from llm_pruner.config import sparsify
from llm_pruner.config.recipe import Recipe
from llm_pruner.errors import PlanError, UsageError
from llm_pruner.model import loading
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output.reports import Measured
from llm_pruner.sparsity.linear import sparse_layers
from tests import REPOSITORY
from tests.support import tiny
from tests.support.commands import DEMO, one_line

CONFIGS = sorted((REPOSITORY / "configs" / "sparse").glob("*.yaml"))
ROWS = [path for path in CONFIGS if "sweep" not in path.name]
STRIDE = 40
SHORT = {
    "dtype": "float32",  # without instructions of its own for bfloat16 a CPU takes five times as long
    "eval_data": "demo",
    "max_seq_len": 64,
    "eval_stride": STRIDE,
    "nsamples": 4,
    "calibration_seq_len": 32,
    "epochs": 1,
}


def options(**values) -> sparsify.SparsifyOptions:
    return sparsify.resolve({"model": ("demo",), **SHORT, **values})


@functools.cache
def perplexity(folder: Path, dtype: str = "float32") -> float:
    """As the command measures it, with the parts."""
    from llm_pruner.calibration.texts import load_text
    from llm_pruner.calibration.windows import token_windows
    from llm_pruner.evaluation.perplexity import perplexity as measured

    config = loading.load_config(str(folder), any_family=True)
    model = loading.load_model(str(folder), config, dtype, "cpu")
    windows = token_windows(load_text("demo"), load_tokenizer(str(folder)), 64)[::STRIDE]
    return measured(model, windows)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_yaml_means_something(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    flags = ["--config", str(path), "--model", "demo"]
    found = cli.parse(flags + (["--folder", "x"] if "sweep" in path.name else []), COMMANDS["sparsify"])
    if "sweep" in path.name:
        assert found.patterns
        assert all(Path(name).is_file() for name in found.patterns)
        return
    name = path.stem.split("_")
    recipe = found.recipe
    assert recipe.sparse == ("weights" if name[0] == "weight" else "activations")
    numbers = [part for part in name[1:] if part.replace(".", "").isdigit()]
    assert recipe.pattern == (":".join(numbers) if len(numbers) == 2 else numbers[0])
    for word, field, value in (
        ("var", "transform", "variance"), ("pts", "transform", "shift"), ("learnable", "transform", "learnable"),
        ("l", "criterion", "l"), ("wanda", "criterion", "wanda"), ("scaling", "scaling", True),
        ("causal", "causal", True), ("permutation", "permutation", True), ("threshold", "select", "threshold"),
        ("qkvo", "targets", ("q", "k", "v", "o")),
    ):  # fmt: skip
        if "combined" not in name:
            assert (getattr(recipe, field) == value) == (word in name)


def test_the_sweep_has_every_row():
    patterns = yaml.safe_load((REPOSITORY / "configs" / "sparse" / "sweep.yaml").read_text())["patterns"]
    assert sorted(patterns) == [path.name for path in ROWS]


@pytest.mark.slow
@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_every_row_runs_on_a_trained_model(path):
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in yaml.safe_load(path.read_text()).items()}
    made = sparsify_checkpoint(options(**{**values, "epochs": 1}))
    assert made.perplexity.before == pytest.approx(perplexity(DEMO), rel=1e-5)
    assert made.perplexity.after > made.perplexity.before - 0.01
    recipe = Recipe.of(made.sparsity)
    expected = recipe.n / recipe.m if recipe.m else 1 - recipe.ratio
    assert made.kept == pytest.approx(expected, abs=0.06 if recipe.select == "threshold" else 0.006)
    assert bool(made.calibration) == recipe.needs_text
    assert made.label == recipe.label


def test_activations_are_calibrated_on_several_texts_one_of_them_the_models_own():
    made = sparsify_checkpoint(options(n=8, m=16, scaling=True, calibration_data=("demo", "self=0.25")))
    assert [(own.data, own.windows) for own in made.calibration.sources] == [("demo", 3), ("self", 1)]
    assert made.kept == pytest.approx(0.5, abs=0.006)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["act_8_16_combined", "act_8_16_var_causal", "weight_8_16_wanda", "act_threshold_0.5"])
def test_what_is_saved_scores_as_it_was_measured(row, command_of, tmp_path):
    done = command_of(
        "sparsify", "--config", REPOSITORY / "configs" / "sparse" / f"{row}.yaml", "--model", "demo", "--epochs", 1,
        "--eval_data", "demo", "--max_seq_len", 64, "--eval_stride", STRIDE, "--nsamples", 4,
        "--calibration_seq_len", 32, "--dtype", "float32", "--save_model", "sparse", "--report", "report.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "reloaded in a fresh process: same logits" in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    saved = json.loads((tmp_path / "sparse" / "report.json").read_text())
    assert saved["perplexity"] == report["perplexity"]
    assert f"perplexity after: {report['perplexity']['after']:.2f}" in done.stdout
    assert perplexity(tmp_path / "sparse") == pytest.approx(report["perplexity"]["after"], rel=1e-4)
    config = loading.load_config(str(tmp_path / "sparse"), any_family=True)
    model = loading.load_model(str(tmp_path / "sparse"), config, "auto", "cpu")
    stock = row.startswith("weight")
    assert ("quantization_config" in json.loads((tmp_path / "sparse" / "config.json").read_text())) != stock
    assert bool(sparse_layers(model)) != stock
    card = (tmp_path / "sparse" / "README.md").read_text()
    assert f"sparse {'weights' if stock else 'activations'} ({report['label']})" in card
    assert ("import llm_pruner" in card) != stock
    assert report["label"] in (tmp_path / "sparse" / "report.html").read_text()
    refused = command_of(
        "prune", "--model", "sparse", "--pruning_ratio", 0.5, "--importance", "magnitude", "--no_save", "--eval_data",
        "none",
    )  # fmt: skip
    assert (refused.returncode == 0) == stock
    if not stock:
        assert "sparse activations" in one_line(refused, 3)
        assert "sparse activations" in one_line(command_of("sparsify", "--model", "sparse", "--n", 2, "--m", 4), 3)
        assert "sparse activations" in one_line(command_of("recover", "--model", "sparse"), 3)


@pytest.mark.slow
def test_evaluate_sets_a_sparse_checkpoint_beside_the_dense_one(command_of, tmp_path, quick_reload):
    sparsify_checkpoint(options(n=2, m=4, save_model=str(tmp_path / "sparse")))
    done = command_of(
        "evaluate", "--model", "demo", "sparse", "--eval_data", "demo", "--max_seq_len", 64, "--dtype", "float32",
        "--report", "e.json", "--speed", "--prompt_len", 8, "--new_tokens", 4, "--repeats", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    dense, sparse = json.loads((tmp_path / "e.json").read_text())["models"]
    assert sparse["parameters"] == dense["parameters"]
    assert sparse["perplexity"]["demo"]["value"] > dense["perplexity"]["demo"]["value"]


def test_zero_shot_where_asked(tmp_path):
    questions = [{"text": "one", "choices": ["a", "b"], "label": 0}] * 3
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "task.yaml").write_text(
        f"task: local\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path / 'questions.json'}\n"
        "test_split: train\noutput_type: multiple_choice\ndoc_to_text: text\ndoc_to_choice: choices\n"
        "doc_to_target: label\nmetric_list:\n  - metric: acc\n"
    )
    made = sparsify_checkpoint(options(ratio=0.9, eval_data="none", tasks=(str(tmp_path / "task.yaml"),)))
    assert all("acc" in rows["local"] for rows in (made.zero_shot.before, made.zero_shot.after))
    assert made.perplexity == Measured()


@pytest.fixture
def sweep(tmp_path) -> dict:
    """Two models, two patterns."""
    for name, text in {"a": "n: 2\nm: 4\n", "b": "ratio: 0.5\nsparse: weights\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "my_sweep.yaml").write_text("patterns: [a.yaml, b.yaml]\nmax_seq_len: 64\n")
    shutil.copytree(DEMO, tmp_path / "other")
    models = ("demo", str(tmp_path / "other"))
    return {"model": models, "folder": str(tmp_path / "runs"), "eval_data": "demo", "dtype": "float32"}


@pytest.mark.slow
def test_a_sweep_runs_models_and_patterns_once(sweep, tmp_path, capsys):
    resolved = sparsify.resolve({**sweep, "eval_stride": STRIDE}, str(tmp_path / "my_sweep.yaml"))
    made = sparsify_checkpoint(resolved)
    folder = tmp_path / "runs"
    assert {path.name for path in folder.iterdir()} == {
        "demo--a.json", "demo--b.json", "other--a.json", "other--b.json", "sweep.json", "sweep.md",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert said.count("perplexity before") == 2  # once for each model
    assert len({run.perplexity.before for run in made.runs}) == 1
    table = (folder / "sweep.md").read_text()
    rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in table.splitlines()]
    single = sparsify_checkpoint(options(n=2, m=4)).perplexity
    assert rows[0] == ["demo", "other"]
    assert rows[2] == ["dense", *[f"{single.before:.2f}"] * 2]
    assert rows[3] == ["act 2:4", *[f"{single.after:.2f}"] * 2]
    assert rows[4][0] == "weight 0.5"
    before = {path.name: path.read_bytes() for path in folder.glob("*--*.json")}
    capsys.readouterr()
    sparsify_checkpoint(resolved)
    assert capsys.readouterr().out.count("skipped") == 4
    assert before == {path.name: path.read_bytes() for path in folder.glob("*--*.json")}


@pytest.mark.slow
def test_a_sweep_does_again_what_is_not_what_it_was(sweep, tmp_path, capsys):
    resolved = sparsify.resolve({**sweep, "eval_stride": STRIDE}, str(tmp_path / "my_sweep.yaml"))
    sparsify_checkpoint(resolved)
    (tmp_path / "a.yaml").write_text("n: 1\nm: 4\n")  # another pattern
    (tmp_path / "runs" / "demo--b.json").write_text('{"half a')  # killed while it was written, by an older program
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))  # another model
    capsys.readouterr()
    made = sparsify_checkpoint(resolved)
    assert capsys.readouterr().out.count("skipped") == 0
    assert {own.label for own in made.runs} == {"act 1:4", "weight 0.5"}


def test_a_row_that_fails_does_not_stop_a_sweep(sweep, tmp_path, command_of):
    (tmp_path / "a.yaml").write_text("n: 2\nm: 4\ntargets: ['experts']\n")
    done = command_of(
        "sparsify", "--config", "my_sweep.yaml", "--model", "demo", "--folder", "runs", "--eval_data", "demo",
        "--eval_stride", STRIDE,
    )  # fmt: skip
    assert "1 of 2 runs failed" in one_line(done, 1)
    assert "'experts'" in done.stderr
    assert "weight 0.5" in (tmp_path / "runs" / "sweep.md").read_text()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "n and m, such as 8 and 16, or ratio"),
        ({"n": 2}, "n and m"),
        ({"n": 2, "m": 4, "ratio": 0.5}, "n and m"),
        ({"n": 4, "m": 4}, "1 <= n < m"),
        ({"ratio": 0.0}, "0 < ratio < 1"),
        ({"ratio": 1.0}, "0 < ratio < 1"),
        ({"ratio": float("nan")}, "0 < ratio < 1"),
        ({"n": 2, "m": 4, "select": "threshold"}, "threshold goes with ratio"),
        ({"ratio": 0.5, "permutation": True}, "permutation"),
        ({"ratio": 0.5, "select": "threshold", "criterion": "l"}, "needs causal"),
        ({"ratio": 0.5, "targets": ("q", "")}, "is blank"),
        ({"ratio": 0.5, "sparse": "weights", "transform": "shift"}, "transform is about activations"),
        ({"ratio": 0.5, "sparse": "weights", "criterion": "l"}, "criterion l"),
        ({"ratio": 0.5, "criterion": "wandaa"}, "did you mean 'wanda'"),
        ({"ratio": 0.5, "transform": "pts"}, "variance"),
        ({"ratio": 0.5, "targets": ("q(",)}, r"q\("),
        ({"ratio": 0.5, "model": ("demo", "demo")}, "sweep"),
        ({"ratio": 0.5, "folder": "x"}, "sweep"),
        ({"ratio": 0.5, "eval_data": "none"}, "nothing to do"),
        ({"ratio": 0.5, "num_fewshot": 2}, "give `tasks`"),
        ({"patterns": ("a.yaml",)}, "give `folder`"),
        ({"patterns": ("a.yaml",), "folder": "x", "n": 2}, "belongs to the sweep's patterns"),
        ({"patterns": ("a.yaml",), "folder": "x", "save_model": "y"}, "one run"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(values, named):
    with pytest.raises(UsageError, match=named):
        options(**values)


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("ratio: 5e-1\n", 2, "write 0.5"),
        ("m: 4\nn: 2\nm: 8\n", 2, "set twice"),
        ("ratio: 0.5\ntransfrom: shift\n", 2, "did you mean 'transform'"),
        ("ratio: 0.5\ntargets: [q, experts]\n", 3, "'experts'"),
        ("patterns: [missing.yaml]\nfolder: runs\n", 2, "missing.yaml"),
        ("ratio: 0.5\ncalibration_data: none.txt\nscaling: true\n", 2, "none.txt"),
        ("ratio: 0.5\nmodel: demo\nreport: folder/report.json\n", 2, "existing folder"),
    ],
)
def test_a_yaml_that_cannot_be_meant(text, code, named, command_of, tmp_path):
    (tmp_path / "row.yaml").write_text(text)
    done = command_of("sparsify", "--config", "row.yaml", "--model", "demo", "--eval_data", "demo", "--eval_stride", 50)
    assert named in one_line(done, code)


def test_nothing_that_is_there_is_lost(command_of, tmp_path):
    (tmp_path / "report.json").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("mine")
    row = ("sparsify", "--model", "demo", "--n", 2, "--m", 4, "--eval_data", "none", "--save_model")
    assert "--overwrite" in one_line(command_of(*row, "sparse", "--report", "report.json"), 2)
    assert "--overwrite" in one_line(command_of(*row, "taken"), 2)
    assert not (tmp_path / "sparse").exists()
    assert (tmp_path / "report.json").read_text() == "mine"


def test_targets_by_commas_and_expressions_with_commas():
    assert options(ratio=0.5, targets=("q,k, v",)).targets == ("q", "k", "v")
    assert options(ratio=0.5, targets=("layers.{1,2}",)).targets == ("layers.{1,2}",)


def test_fused_projections_are_named(tmp_path):
    tiny.model("phi3").save_pretrained(tmp_path / "phi3")
    with pytest.raises(PlanError, match="qkv_proj computes k, q, v"):
        sparsify_checkpoint(
            options(model=(str(tmp_path / "phi3"),), ratio=0.5, targets=("q",), eval_data="none", save_model="x")
        )


def test_a_family_that_is_not_known(tmp_path, command_of):
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt" / "config.json").write_text('{"model_type": "opt"}')
    done = command_of("sparsify", "--model", "opt", "--ratio", 0.5, "--eval_data", "none", "--save_model", "x")
    assert "supported: gemma" in one_line(done, 3)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path, quick_reload):
    for name in ("one", "two"):
        sparsify_checkpoint(
            options(n=8, m=16, transform="learnable", scaling=True, permutation=True, save_model=str(tmp_path / name))
        )
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_the_dtype_is_what_was_asked(tmp_path, quick_reload):
    sparsify_checkpoint(
        options(n=2, m=4, scaling=True, dtype="bfloat16", save_model=str(tmp_path / "sparse"), eval_data="none")
    )
    config = loading.load_config(str(tmp_path / "sparse"), any_family=True)
    model = loading.load_model(str(tmp_path / "sparse"), config, "auto", "cpu")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {layer.sparsity.scale.dtype for layer in sparse_layers(model).values()} == {torch.float32}


@pytest.mark.slow
def test_a_sweep_scores_the_dense_model_as_each_pattern_asks(sweep, tmp_path):
    (tmp_path / "b.yaml").write_text("n: 2\nm: 4\nmax_seq_len: 16\n")
    made = sparsify_checkpoint(
        sparsify.resolve({**sweep, "model": ("demo",), "eval_stride": STRIDE}, str(tmp_path / "my_sweep.yaml"))
    )
    long, short = (own.perplexity for own in made.runs)
    assert short == sparsify_checkpoint(options(n=2, m=4, max_seq_len=16)).perplexity
    assert long.before != short.before


def test_flags_win_over_a_sweeps_patterns(sweep, tmp_path):
    (tmp_path / "b.yaml").write_text("n: 2\nm: 4\nmax_seq_len: 16\n")
    flags = {**sweep, "model": ("demo",), "eval_stride": STRIDE, "max_seq_len": 32}
    made = sparsify_checkpoint(sparsify.resolve(flags, str(tmp_path / "my_sweep.yaml")))
    assert len({own.perplexity.after for own in made.runs}) == 1


@pytest.mark.parametrize(("line", "code"), [("save_model: x", 2), ("model: demo", 2), ("patterns: [b.yaml]", 2)])
def test_what_is_the_sweeps_is_not_its_patterns(line, code, sweep, tmp_path, command_of):
    (tmp_path / "a.yaml").write_text(f"n: 2\nm: 4\n{line}\n")
    done = command_of("sparsify", "--config", "my_sweep.yaml", "--model", "demo", "--folder", "runs")
    assert "a.yaml" in one_line(done, code)
    assert "belongs to the sweep" in done.stderr


def test_a_sweep_looks_at_all_models_first(sweep, tmp_path, command_of):
    done = command_of("sparsify", "--config", "my_sweep.yaml", "--model", "demo", "./nope", "--folder", "runs")
    assert "./nope" in one_line(done, 1)
    assert not list((tmp_path / "runs").glob("demo*"))


def test_patterns_that_were_typed_are_where_one_is(sweep, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = {"model": ("demo",), "patterns": ("a.yaml",), "folder": "runs"}
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "base.yaml").write_text("max_seq_len: 64\n")
    assert sparsify.resolve(flags, "sub/base.yaml").patterns == ("a.yaml",)
