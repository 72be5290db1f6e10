"""A pipeline by its command, and once more."""

import json
import re

import pytest

from llm_pruner.model.demo.text import held_out


@pytest.mark.slow
def test_all_of_it_on_the_demo_model(command_of, tmp_path):
    """By its real commands: prune, recover, evaluate; once more, and nothing runs."""
    (tmp_path / "text.txt").write_text(held_out()[:4_000], encoding="utf-8")
    (tmp_path / "p.yaml").write_text(
        "dtype: float32\nprune: {pruning_ratio: 0.5, importance: magnitude, eval_data: text.txt}\n"
        "recover: {steps: 2, eval_data: text.txt}\n"
        "evaluate: {eval_data: text.txt}\n"
    )
    done = command_of("pipeline", "--config", "p.yaml", "--model", "demo", "--folder", "run", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    pruned, recovered = (summary["perplexity"][stage] for stage in ("prune", "recover"))
    assert recovered["before"] == pytest.approx(pruned["after"], rel=1e-6)
    for name in ("prune.log", "recover.log", "evaluate.log", "evaluation.json", "report.html", "recovered/report.json"):
        assert (tmp_path / "run" / name).is_file()
    assert re.search(r"perplexity after: [\d.]+", (tmp_path / "run" / "recover.log").read_text())
    again = command_of("pipeline", "--config", "p.yaml", "--model", "demo", "--folder", "run")
    assert again.stdout.count("; skipped") == 3
