"""The examples run, each in a process and in an empty folder, and what they print bears out what they say."""

import json
import re
from pathlib import Path

import pytest

from tests import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
PERPLEXITY = r"perplexity (\d+\.\d+)"


def printed(python, name: str) -> str:
    done = python(EXAMPLES / f"{name}.py", timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_and_short_and_says_what_it_shows():
    tried = set(re.findall(r'printed\(python, "(\w+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert tried == {path.stem for path in EXAMPLES.glob("*.py")}
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 40, path
        assert text.startswith('"""'), path
        assert "It shows" in text, path


def test_prune_in_memory_halves_every_width(python):
    text = printed(python, "prune_in_memory")
    assert re.search(r"hidden_size +192 +96 ", text)
    assert "parameters: 1,783,104 before, 522,912 after" in text


@pytest.mark.slow
def test_reconstruct_is_better_than_magnitude_at_the_same_parameters(python):
    lines = printed(python, "reconstruct").splitlines()
    found = [re.fullmatch(rf"(\w+): ([\d,]+) parameters, {PERPLEXITY}", line) for line in lines]
    magnitude, reconstruct = [match for match in found if match]
    assert (magnitude[1], reconstruct[1]) == ("magnitude", "reconstruct")
    assert magnitude[2] == reconstruct[2] != "1,783,104"
    assert float(reconstruct[3]) < float(magnitude[3])


@pytest.mark.slow
def test_sparse_activations_lose_less_with_a_permutation(python):
    dense, plain, permutation = (
        float(value) for value in re.findall(PERPLEXITY, printed(python, "sparse_activations"))
    )
    assert dense < permutation < plain < 1.05 * dense


@pytest.mark.slow
def test_prune_recover_evaluate_makes_two_checkpoints_and_recovery_helps(python, tmp_path):
    printed(python, "prune_recover_evaluate")
    for name in ("demo", "demo-recovered"):
        assert (tmp_path / "pruned" / name / "report.json").is_file()
    evaluation = json.loads((tmp_path / "pruned" / "evaluation.json").read_text(encoding="utf-8"))
    dense, pruned, recovered = (own["perplexity"]["demo"]["value"] for own in evaluation["models"])
    assert dense < recovered < pruned
