"""The extension drill: a package outside this one adds to every registry, and the commands use what it adds."""

import json
import os
import sys
import tomllib

import pytest
from safetensors.torch import load_file

from llm_pruner.registry import forget_entry_points
from tests import REPOSITORY
from tests.support.commands import DEMO, one_line

EXTENSION = REPOSITORY / "examples" / "extension"
PRUNE = ("--model", "demo", "--pruning_ratio", 0.5, "--eval_data", "none", "--save_model", "pruned")


def install(folder) -> None:
    """Write what pip would of the package's metadata into a folder."""
    project = tomllib.loads((EXTENSION / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = folder / "my_pruner-0.1.dist-info"
    own.mkdir(parents=True)
    lines = [f"Name: {project['name']}", f"Version: {project['version']}"]
    (own / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines]) + "\n", encoding="utf-8")
    groups = []
    for group, points in project["entry-points"].items():
        groups += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (own / "entry_points.txt").write_text("\n".join(groups) + "\n", encoding="utf-8")


@pytest.fixture
def extended(forks, tmp_path):
    """Runs a command where the package is installed."""
    site = tmp_path / "site"
    install(site)
    path = ":".join(map(str, (REPOSITORY, EXTENSION, site)))

    def run(*arguments):
        command = [sys.executable, "-m", "llm_pruner", *map(str, arguments)]
        return forks.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"})

    return run


def report_of(tmp_path, name: str = "pruned") -> dict:
    return json.loads((tmp_path / name / "report.json").read_text(encoding="utf-8"))


def test_a_criterion_and_an_exporter(extended, tmp_path):
    done = extended("prune", *PRUNE, "--importance", "peak:power=2", "--export", "float16")
    assert done.returncode == 0, done.stderr
    assert report_of(tmp_path)["importance"] == "peak"
    whole, half = (load_file(tmp_path / "pruned" / name) for name in ("model.safetensors", "float16/model.safetensors"))
    assert whole.keys() == half.keys()
    assert all((whole[name].half() == half[name]).all() for name in whole)


def test_an_option_that_the_criterion_does_not_have(extended):
    done = extended("prune", *PRUNE, "--importance", "peak:power=high")
    assert one_line(done, 2) == "llm-pruner prune: error: power: 'high' is not a number"


def test_a_method(extended, tmp_path):
    text = "--calibration_data", "demo", "--nsamples", 4, "--calibration_seq_len", 32
    done = extended(
        "prune", "--model", "demo", "--method", "angular_distance", "--target", "num_hidden_layers=2", "--eval_data",
        "none", "--save_model", "pruned", *text,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = report_of(tmp_path)
    distance = report["notes"]["distance"]
    assert len(distance) == 3, "of four layers two neighbours can go in three ways"
    first = min(range(3), key=distance.__getitem__)
    assert report["layers"]["kept"] == [layer for layer in range(4) if layer not in (first, first + 1)]
    kept, dense = load_file(tmp_path / "pruned" / "model.safetensors"), load_file(f"{DEMO}/model.safetensors")
    for new, old in enumerate(report["layers"]["kept"]):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert (kept[name.format(new)] == dense[name.format(old)]).all()


def test_a_loss(extended, tmp_path):
    assert extended("prune", *PRUNE, "--importance", "magnitude").returncode == 0
    recover = "--data", "demo", "--max_seq_len", 32, "--steps", 2, "--eval_data", "none", "--device", "cpu"
    told = []
    for name, losses in (("plain", ()), ("agreeing", ("--losses", "agreement=5"))):
        done = extended("recover", "--model", "pruned", "--save_model", name, *recover, *losses)
        assert done.returncode == 0, done.stderr
        told.append(report_of(tmp_path, name)["history"])
    assert told[0] != told[1]


def test_a_family(extended, tmp_path):
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path / "granite")
    options = "--pruning_ratio", 0.5, "--prune", "heads,mlp", "--importance", "magnitude", "--eval_data", "none"
    done = extended("prune", "--model", "granite", *options, "--save_model", "pruned")
    assert done.returncode == 0, done.stderr
    assert GraniteForCausalLM.from_pretrained(tmp_path / "pruned").config.intermediate_size == 24


def test_a_method_that_is_not_there(command):
    done = command(*PRUNE[:4], "--method", "angular_distance", "--no_save")
    assert "unknown method 'angular_distance'" in one_line(done, 2)


def test_what_is_installed_later_is_found(monkeypatch, tmp_path):
    from llm_pruner import CRITERIA

    assert "peak" not in CRITERIA
    install(tmp_path)
    monkeypatch.setattr(sys, "path", [str(EXTENSION), str(tmp_path), *sys.path])
    forget_entry_points()
    try:
        assert "peak" in CRITERIA.names()
        assert CRITERIA.get("peak").name == "peak"
    finally:
        monkeypatch.undo()
        forget_entry_points()
