"""The vocabulary, end to end on the demo model: chosen, cut, saved with its tokenizer, replayed, refused."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_pruner.model.demo.text import held_out
from llm_pruner.shape.plan import Plan
from tests.support import tiny
from tests.support.commands import DEMO, UNSCORED, one_line

TEXT = held_out()[:3_000]


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return "text.txt"


def test_the_saved_model_gives_the_dense_models_logits_at_the_tokens_that_stay(command, text, tmp_path):
    scored = ("--eval_data", text, "--max_seq_len", "64")
    done = command("--model", "demo", "--prune", "vocab", "--vocab_data", text, *scored, "--save_model", "small")
    assert done.returncode == 0, done.stderr
    dense, small = (AutoTokenizer.from_pretrained(one) for one in (DEMO, tmp_path / "small"))
    own, theirs = small(TEXT)["input_ids"], dense(TEXT)["input_ids"]
    tokens = {number: token for token, number in small.get_vocab().items()}
    kept = [dense.get_vocab()[tokens[number]] for number in range(len(tokens))]
    assert [kept[number] for number in own] == theirs
    assert kept == sorted(kept)
    models = [AutoModelForCausalLM.from_pretrained(one, dtype=torch.float32) for one in (DEMO, tmp_path / "small")]
    expected = tiny.logits(models[0], torch.tensor([theirs[:64]]))[..., kept]
    assert torch.equal(tiny.logits(models[1], torch.tensor([own[:64]])), expected)

    report = json.loads((tmp_path / "small" / "report.json").read_text())
    rows, number = len(dense), len(small)
    assert number % 64 == 0
    assert [report["widths"][side]["vocab_size"] for side in ("before", "after")] == [rows, number]
    assert report["parameters"]["before"] - report["parameters"]["after"] == 192 * (rows - number) * 2
    assert report["importance"] == "token counts"
    assert report["vocabulary"]["covered"] == 1
    # the same tokens, and fewer others that might have come instead
    assert report["bits_per_byte"]["after"] <= report["bits_per_byte"]["before"]
    assert f"perplexity after: {report['perplexity']['after']:.2f} per token, " in done.stdout
    assert "bits per byte" in (tmp_path / "small" / "README.md").read_text()
    assert "bits per byte" in (tmp_path / "small" / "report.html").read_text()


def test_it_goes_with_other_axes_and_a_plan_replays_both(command, text, tmp_path):
    how = ("--prune", "vocab=0.4,mlp=0.5", "--vocab_data", text, "--importance", "magnitude")
    done = command("--model", "demo", *how, *UNSCORED, "--save_plan", "plan.json", "--save_model", "first")
    assert done.returncode == 0, done.stderr
    plan = Plan.load(tmp_path / "plan.json")
    assert [layer.by_field()["intermediate_size"] for layer in plan.after] == [256] * 4
    assert len(plan.units["vocab"]) == 384
    again = command("--model", "demo", "--plan", "plan.json", *UNSCORED, "--save_model", "again")
    assert again.returncode == 0, again.stderr
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again"))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    files = [(tmp_path / name / "tokenizer.json").read_text() for name in ("first", "again")]
    assert files[0] == files[1]


def test_a_dry_run_has_its_size_in_the_table(command, text):
    done = command("--model", "demo", "--target", "vocab_size=400", "--vocab_data", text, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert ["vocab_size", "607", "400", "0.3410", "0.3410"] in [line.split() for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "vocab_size=20"), "vocab_size=20 is too small: 257 tokens have to stay"),
        (("--target", "vocab_size=4000"), "vocab_size=4,000 is more than the model has (607)"),
    ],
)
def test_too_few_or_too_many(command, text, arguments, message):
    assert message in one_line(command("--model", "demo", *arguments, "--vocab_data", text, *UNSCORED), 3)


def test_a_model_without_a_tokenizer(command, text, model):
    for path in model.glob("tokenizer*"):
        path.unlink()
    done = command("--model", "model", "--prune", "vocab", "--vocab_data", text, *UNSCORED)
    assert "has no tokenizer, so its vocabulary cannot be pruned" in one_line(done, 3)


def test_a_tokenizer_of_another_kind(command, text, model, tmp_path):
    raw = json.loads((model / "tokenizer.json").read_text())
    raw["model"]["end_of_word_suffix"] = "</w>"
    (model / "tokenizer.json").write_text(json.dumps(raw))
    done = command("--model", "model", "--prune", "vocab", "--vocab_data", text, *UNSCORED, "--save_model", "out")
    assert "end_of_word_suffix" in one_line(done, 3)
    assert not (tmp_path / "out").exists()
