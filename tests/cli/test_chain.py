"""What follows a pruning in the same command: `--recover` and `--eval_zero_shot`."""

import json

import pytest

import llm_pruner
from llm_pruner.cli.requests import resolve
from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import UsageError
from llm_pruner.evaluation import zero_shot
from llm_pruner.serialisation import plain

pytestmark = pytest.mark.usefixtures("no_fresh_process")

# In float32: without instructions of its own for bfloat16 a CPU takes five times as long.
HALF = {"model": "demo", "dtype": "float32", "pruning_ratio": 0.5, "importance": "magnitude", "eval_data": "demo"}


@pytest.mark.slow
def test_prune_then_recover(tmp_path):
    (tmp_path / "short.yaml").write_text("method: distil\nsteps: 4\nmax_seq_len: 64\n")
    made = llm_pruner.prune_checkpoint(
        PruneOptions(
            **HALF, save_model=str(tmp_path / "half"), recover=str(tmp_path / "short.yaml"), device="cpu", seed=3
        ),
        ["--model", "demo", "--recover", "short.yaml"],
    )
    stored = json.loads((tmp_path / "half-recovered" / "report.json").read_text())
    assert plain(made.recovered.perplexity) == stored["perplexity"]
    assert stored["perplexity"]["before"] > stored["perplexity"]["after"]
    assert (stored["teacher"], stored["seed"], stored["training"]["steps"]) == ("demo", 3, 4)
    assert stored["made_from"]["parameters"] == plain(made.parameters)
    assert (tmp_path / "half" / "report.json").is_file()
    assert stored["command"] == "llm-pruner prune --model demo --recover short.yaml", "what was typed"
    with pytest.raises(UsageError, match="half is not empty"):
        llm_pruner.prune_checkpoint(PruneOptions(**HALF, save_model=str(tmp_path / "half"), recover="lora"))


def test_what_cannot_follow_is_found_before_anything_is_pruned(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_pruner.cli.prune.run", lambda *_: pytest.fail("it was pruned"))
    (tmp_path / "bad.yaml").write_text("step: 3\n")
    for how, message in (("lorra", "neither distil, lora nor a YAML"), (str(tmp_path / "bad.yaml"), "mean 'steps'")):
        with pytest.raises(UsageError, match=message):
            llm_pruner.prune_checkpoint(PruneOptions(**HALF, save_model=str(tmp_path / "half"), recover=how))
    (tmp_path / "half-recovered").mkdir()
    (tmp_path / "half-recovered" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is not empty"):
        llm_pruner.prune_checkpoint(PruneOptions(**HALF, save_model=str(tmp_path / "half"), recover="distil"))
    with pytest.raises(UsageError, match="recover trains the saved checkpoint; leave out no_save"):
        resolve({**HALF, "recover": "lora", "no_save": True})


@pytest.mark.slow
def test_zero_shot_before_and_after(tmp_path, monkeypatch, capsys):
    asked = []

    def fake(model, tokenizer, tasks, **options):
        asked.append((sum(p.numel() for p in model.parameters()), list(tasks)))
        return {"piqa": {"acc": 0.9 if len(asked) == 1 else 0.6, "samples": 10}}

    monkeypatch.setattr(zero_shot, "zero_shot", fake)
    made = llm_pruner.prune_checkpoint(PruneOptions(**HALF, save_model=str(tmp_path / "half"), eval_zero_shot=True))
    assert [size for size, _ in asked] == [made.parameters.before, made.parameters.after]
    assert asked[0][1] == ["piqa", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "boolq"]
    assert [rows["piqa"]["acc"] for rows in (made.zero_shot.before, made.zero_shot.after)] == [0.9, 0.6]
    printed, card = capsys.readouterr().out, (tmp_path / "half" / "README.md").read_text()
    for text in (printed, card):
        assert "piqa" in text
        assert "60.0" in text
