"""Scores on disk: used again at another ratio without a forward pass, refused when they are of something else."""

import functools
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from llm_pruner import prune_checkpoint
from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import UsageError
from llm_pruner.importance import CRITERIA
from llm_pruner.methods import ScoreAndCut, score_and_cut
from llm_pruner.model.axes import MLP
from llm_pruner.shape.draft import draft
from llm_pruner.shape.plan import Plan
from llm_pruner.shape.request import Ratio
from tests.support import tiny
from tests.support.commands import edit_tensors

SMALL = {"eval_data": "none", "no_save": True, "nsamples": 4, "calibration_seq_len": 32}


def prune(folder, **options) -> Plan:
    """The plan of a run on the demo model."""
    prune_checkpoint(PruneOptions(**{"model": "demo", **SMALL, "save_plan": str(folder / "plan.json"), **options}))
    return Plan.load(folder / "plan.json")


def forbid(monkeypatch):
    def forward(*_, **__):
        raise AssertionError("a forward pass")

    monkeypatch.setattr(score_and_cut, "collect", forward)
    monkeypatch.setattr(score_and_cut, "weight_gradient_products", forward)


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["flap", "amp", "taylor"])
def test_second_ratio_costs_no_forward_pass(tmp_path, monkeypatch, importance):
    """Nor does another structure; and the units are those that a run without the file chooses."""
    options = {"importance": importance, "scores": str(tmp_path / "scores.safetensors")}
    prune(tmp_path, param_ratio=0.3, **options)
    others = [
        {"param_ratio": 0.6},
        {"param_ratio": 0.4, "structure": "AL-AM"},
        {"param_ratio": 0.3, "order": "reversed"},
    ]
    expected = [prune(tmp_path, importance=importance, **other).kept for other in others]
    forbid(monkeypatch)
    for other, kept in zip(others, expected, strict=True):
        assert prune(tmp_path, **options, **other).kept == kept


@pytest.mark.slow
def test_means_are_kept_for_the_bias(tmp_path, monkeypatch):
    options = {"importance": "flap", "compensate": "bias", "scores": str(tmp_path / "scores.safetensors")}
    prune(tmp_path, param_ratio=0.3, **options)
    forbid(monkeypatch)
    report = prune_checkpoint(PruneOptions(model="demo", **SMALL, param_ratio=0.5, **options))
    assert report.compensate == "bias"


def test_means_that_were_not_measured(tmp_path):
    options = {"importance": "amp", "param_ratio": 0.3, "scores": str(tmp_path / "scores.safetensors")}
    prune(tmp_path, **options)
    with pytest.raises(UsageError, match="was made without `compensate=bias` and has no means"):
        prune(tmp_path, compensate="bias", **options)


def test_dry_run_of_an_adaptive_structure_needs_no_weights(tmp_path, monkeypatch):
    from llm_pruner.model import loading

    options = {"importance": "flap", "structure": "AL-AM", "scores": str(tmp_path / "scores.safetensors")}
    prune(tmp_path, pruning_ratio=0.3, **options)
    monkeypatch.setattr(loading, "load_model", None)
    plan = prune(tmp_path, pruning_ratio=0.5, dry_run=True, **{**options, "no_save": False})
    assert len(set(plan.after)) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "made with seed 0, this run has 1"),
        ({"nsamples": 5}, "made with nsamples 4, this run has 5"),
        ({"metrics": "IFV"}, "made with metrics WIFV, this run has IFV"),
        ({"importance": "amp", "metrics": None}, "made with importance flap, this run has amp"),
        ({"dtype": "float32"}, "made with dtype auto, this run has float32"),
    ],
)
def test_scores_of_something_else(tmp_path, change, message):
    options = {"importance": "flap", "param_ratio": 0.3, "scores": str(tmp_path / "scores.safetensors"), "seed": 0}
    prune(tmp_path, **options)
    with pytest.raises(UsageError, match=message):
        prune(tmp_path, **{**options, **change})


def test_scores_of_another_model_or_text(tmp_path, model):
    text = tmp_path / "text.txt"
    text.write_text("On Monday Mara came to the mill.\n" * 40)
    options = {
        "importance": "amp", "param_ratio": 0.3, "model": str(model), "calibration_data": str(text),
        "scores": str(tmp_path / "scores.safetensors"),
    }  # fmt: skip
    prune(tmp_path, **options)
    text.write_text("On Sunday Mara came to the mill.\n" * 40)
    with pytest.raises(UsageError, match="made with calibration_data"):
        prune(tmp_path, **options)
    text.write_text("On Monday Mara came to the mill.\n" * 40)
    prune(tmp_path, **options)
    edit_tensors(model, lambda tensors: tensors["model.layers.1.mlp.down_proj.weight"][:, 7].mul_(2))
    with pytest.raises(UsageError, match="made with model"):
        prune(tmp_path, **options)


def test_means_are_of_one_text_whatever_the_criterion(tmp_path):
    options = {"importance": "mag_sp", "param_ratio": 0.3, "compensate": "bias"}
    prune(tmp_path, **options, scores=str(tmp_path / "scores.safetensors"))
    with pytest.raises(UsageError, match="made with nsamples 4, this run has 8"):
        prune(tmp_path, **options, scores=str(tmp_path / "scores.safetensors"), nsamples=8)


def test_sequential_scores_are_of_one_shape(tmp_path):
    options = {"importance": "wanda_sp", "scores": str(tmp_path / "scores.safetensors")}
    prune(tmp_path, param_ratio=0.3, **options)
    prune(tmp_path, param_ratio=0.3, **options)
    with pytest.raises(UsageError, match="made with widths"):
        prune(tmp_path, param_ratio=0.5, **options)


@pytest.mark.parametrize("content", [b"", b"not a tensor", json.dumps({}).encode()])
def test_files_that_are_no_scores(tmp_path, content):
    (tmp_path / "scores").write_bytes(content)
    with pytest.raises(UsageError, match="holds no scores of this program"):
        prune(tmp_path, importance="flap", param_ratio=0.3, scores=str(tmp_path / "scores"))


def damaged(path, change) -> None:
    """Changes the tensors of a file of scores; what they were made from stays."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


GROUP, MEAN = "layers.0.heads", "mean/model.layers.0.mlp.down_proj.weight"
DAMAGE = {
    "half": (lambda t: t[: len(t) // 2], "must be .* floating-point numbers"),
    "double": (lambda t: t.repeat(2), "must be .* floating-point numbers"),
    "one more": (lambda t: torch.cat([t, t[:1]]), "must be .* floating-point numbers"),
    "a matrix": (lambda t: t[None], "must be .* floating-point numbers"),
    "empty": (lambda t: t[:0], "must be .* floating-point numbers"),
    "whole numbers": (lambda t: t.int(), "it is I32"),
    "truth": (lambda t: t > 0, "it is BOOL"),
    "8 bits": (lambda t: t.to(torch.float8_e4m3fn), "it is F8_E4M3"),
    "NaN": (lambda t: torch.where(t == t.max(), torch.nan, t), "NaN or infinity"),
    "infinity": (lambda t: torch.where(t == t.max(), torch.inf, t), "NaN or infinity"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [GROUP, MEAN])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("importance", ["flap", "amp"])
def test_scores_that_are_damaged(one_file_of_scores, tmp_path, importance, damage, name):
    """Half or double the units would keep the wrong ones in silence."""
    path = shutil.copy(one_file_of_scores(importance), tmp_path)
    change, message = DAMAGE[damage]
    damaged(path, lambda tensors: tensors.update({name: change(tensors[name])}))
    with pytest.raises(UsageError, match=f"`scores` .*{name} .*{message}"):
        prune(tmp_path, importance=importance, compensate="bias", param_ratio=0.3, scores=str(path))


def test_scores_of_a_group_that_the_model_does_not_have(one_file_of_scores, tmp_path):
    path = shutil.copy(one_file_of_scores("flap"), tmp_path)
    damaged(path, lambda tensors: tensors.update({"layers.9.mlp": torch.ones(512)}))
    with pytest.raises(UsageError, match="'layers.9.mlp' is no group and no weight of this model"):
        prune(tmp_path, importance="flap", compensate="bias", param_ratio=0.3, scores=str(path))


def test_a_file_of_scores_that_is_cut_short_or_a_pipe(one_file_of_scores, tmp_path):
    path = Path(shutil.copy(one_file_of_scores("flap"), tmp_path))
    path.write_bytes(path.read_bytes()[:-4])
    options = {"importance": "flap", "compensate": "bias", "param_ratio": 0.3, "scores": str(path)}
    with pytest.raises(UsageError, match="holds no scores of this program"):
        prune(tmp_path, **options)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="is no regular file"):
        prune(tmp_path, **options)


@pytest.fixture(scope="module")
def one_file_of_scores(tmp_path_factory):
    """Makes the scores of an importance once."""

    @functools.cache
    def make(importance: str) -> Path:
        folder = tmp_path_factory.mktemp(importance)
        path = folder / "scores.safetensors"
        prune(folder, importance=importance, compensate="bias", param_ratio=0.3, scores=str(path))
        return path

    return make


@pytest.mark.parametrize("name", CRITERIA.names())
@pytest.mark.parametrize("case", ["llama", "llama_multi_head", "gpt_neox"])
def test_every_criterion_has_as_many_scores_as_it_says(name, case):
    model = tiny.model(case)
    method = ScoreAndCut(name, compensate="bias")
    made = draft(Ratio({MLP: 0.5}), model.config, method)
    groups = method.scoreable(made)
    prompts = [torch.randint(96, (16,)) for _ in range(2)]
    found = method.measure(model, made, groups, prompts)
    lengths, inputs = method.sizes(made)
    if not method.scorer.sequential:  # it scores what its shape needs
        assert set(found.scores) == set(lengths)
    assert {group: len(values) for group, values in found.scores.items()}.items() <= lengths.items()
    assert {weight: len(mean) for weight, mean in found.means.items()} == inputs
