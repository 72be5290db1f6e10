"""The command as a user meets it, by subprocess: the main job, and options that cannot be meant."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from llm_pruner.model.demo.text import held_out
from llm_pruner.output.places import check_folder
from tests import REPOSITORY
from tests.support.commands import DEMO, HALF, UNSCORED, logits, one_line


def test_the_main_job_on_the_demo_model(command, tmp_path):
    (tmp_path / "text.txt").write_text(held_out()[:10_000], encoding="utf-8")
    done = command("--model", "demo", *HALF, "--eval_data", "text.txt", fresh=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "pruned" / "demo-r0.50"
    report = json.loads((folder / "report.json").read_text())
    assert report["parameters"] == {"before": 1_783_104, "after": 522_912}
    assert report["bytes"]["after"] == 2 * 522_912
    assert report["perplexity"]["before"] < 2
    assert report["perplexity"]["after"] > 3 * report["perplexity"]["before"]
    assert f"perplexity after: {report['perplexity']['after']:.2f}" in done.stdout
    assert re.search(r"^warning: perplexity is [\d.]+ times the dense model's", done.stdout, re.MULTILINE)
    assert report["widths"]["after"]["hidden_size"] == 96
    assert {"plan", "load", "evaluate before", "score", "cut", "evaluate after", "save"} <= set(report["seconds"])
    assert report["peak_memory"]["host"] > 0
    assert (
        report["command"]
        == "llm-pruner prune --model demo --pruning_ratio 0.5 --importance magnitude --eval_data text.txt"
    )
    assert (report["seed"], report["importance"], report["model"]) == (0, "magnitude", "demo")
    assert report["versions"]["torch"] == torch.__version__
    card = (folder / "README.md").read_text()
    assert "| hidden_size | 192 | 96 |" in card
    page = (folder / "report.html").read_text()
    assert all(said in page for said in ("522,912", f"{report['perplexity']['after']:.2f}", "Score distributions"))
    scored = {name: len(rows) for name, rows in report["scores"].items()}
    assert scored == {"hidden_size": 1, "num_attention_heads": 4, "intermediate_size": 4}
    check_folder(folder, {}, overwrite=True)  # with all that is in it, it is one that may be replaced
    assert "pruned/demo-r0.50" in done.stdout
    size = sum(t.numel() * t.element_size() for t in load_file(folder / "model.safetensors").values())
    assert size == report["bytes"]["after"]
    assert oct((folder / "model.safetensors").stat().st_mode)[-3:] == oct((folder / "config.json").stat().st_mode)[-3:]
    assert [p.name for p in (tmp_path / "pruned").iterdir()] == ["demo-r0.50"], "staging was left behind"

    again = command("--model", "demo", *HALF)
    assert "is not empty; use --overwrite" in one_line(again, 2)
    pruned_again = command("--model", folder, *HALF, *UNSCORED)  # a pruned checkpoint is a checkpoint
    assert pruned_again.returncode == 0, pruned_again.stderr
    assert (tmp_path / "pruned" / "demo-r0.50-r0.50" / "config.json").is_file()


def test_dry_run_needs_only_the_config(command, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(DEMO / "config.json", tmp_path / "bare")
    done = command("--model", "bare", *HALF, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert ["parameters", "1,783,104", "522,912", "0.7067"] in [line.split() for line in done.stdout.splitlines()]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bare"]


def test_ratio_zero_is_an_exact_copy(command, tmp_path):
    done = command("--model", "demo", "--pruning_ratio", "0", *UNSCORED, "--save_model", "copy")
    assert done.returncode == 0, done.stderr
    before, after = load_file(DEMO / "model.safetensors"), load_file(tmp_path / "copy" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(logits(DEMO), logits(tmp_path / "copy"))


@pytest.mark.slow
def test_plan_is_saved_and_replayed(command, tmp_path, model):
    first = command("--model", "demo", *HALF, *UNSCORED, "--save_plan", "plan.json", "--save_model", "one")
    assert first.returncode == 0, first.stderr
    replay = command("--model", model, "--plan", "plan.json", *UNSCORED, "--save_model", "two")
    assert replay.returncode == 0, replay.stderr
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    report = json.loads((tmp_path / "two" / "report.json").read_text())
    assert report["importance"] == "magnitude"
    dry = command("--model", "demo", *HALF, "--dry_run", "--save_plan", "dry.json")
    assert dry.returncode == 0, dry.stderr
    assert (tmp_path / "dry.json").read_text() == (tmp_path / "plan.json").read_text()


def test_random_plan_needs_no_weights(command, tmp_path):
    (tmp_path / "bare").mkdir()
    shutil.copy(DEMO / "config.json", tmp_path / "bare")
    done = command("--model", "bare", *HALF, "--importance", "random", "--dry_run", "--save_plan", "plan.json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "plan.json").read_text())["kept"]["hidden"]) == 96


def test_yaml_flags_and_a_text_file(command, tmp_path):
    (tmp_path / "options.yaml").write_text("model: demo\npruning_ratio: 0.5\nimportance: random\n")
    (tmp_path / "text.txt").write_text("On Monday Mara came to the mill.\n" * 40)
    arguments = ("--eval_data", "text.txt", "--max_seq_len", 32, "--save_model", "out", "--seed", 3)
    done = command("--config", "options.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["importance"], report["seed"], report["evaluation"]["max_seq_len"]) == ("random", 3, 32)
    assert "importance=random" in done.stdout


def test_help_is_instant(tmp_path):
    """It imports nothing that is slow, and needs a third of what importing torch takes at most, in processor time."""

    def used(*arguments) -> tuple[float, str]:
        before = os.times()
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        return spent, done.stdout + done.stderr

    script = str(REPOSITORY / "prune_llm.py")
    _, printed = used("-X", "importtime", script, "--help")
    assert "--pruning_ratio R" in printed
    assert not re.findall(r"\| +(torch|transformers|datasets|numpy|accelerate|peft)\n", printed)
    best = min(used(script, "--help")[0] for _ in range(3))
    assert 0 < best < used("-c", "import torch")[0] / 3


def test_shape_that_llama_refuses_is_saved_as_mistral(command, tmp_path):
    target = ("--target", "hidden_size=100", "--importance", "magnitude")
    done = command("--model", "demo", *target, *UNSCORED, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    assert "saved as mistral, which computes the same" in done.stdout
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("mistral", ["MistralForCausalLM"])
    assert logits(tmp_path / "out").isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--pruning_ratio", "50%"), 2, "'50%'.*0 <= ratio < 1"),
        (("--pruning_ratio", "1"), 2, "1.0.*0 <= ratio < 1"),
        (("--pruning_ratio", "nan"), 2, "nan.*0 <= ratio < 1"),
        (("--pruning_ratio", "1e-12"), 3, "changes nothing; the smallest ratio that takes a whole step is 0.0019"),
        (("--pruning_ratio", "0.999"), 3, "leaves nothing of hidden_size .192.; the highest legal ratio is 0.9947"),
        (("--pruning_ratio", "0.5", "--importance", "amplitude"), 2, "unknown importance 'amplitude'.*magnitude"),
        (("--pruning_ratio", "0.5", "--eval_data", "wikitext-2"), 2, "did you mean 'wikitext2'"),
        (("--pruning_ratio", "0.5", "--max_seq_len", "1"), 2, "at least 2"),
        (("--target", "num_attention_heads=3"), 3, "not a multiple of 2 kv groups.*nearest legal: 2 or 4"),
        (("--target", "hidden_size=193"), 3, "more than the model has .192."),
        (("--target", "hidden_size=192"), 3, "changes nothing"),
        (("--param_ratio", "0.3", "--method", "score_and_cut", "--epochs", "3", "--per_layer"), 2,
         "method score_and_cut has no option '(per_layer|epochs)'; leave it out"),
        (("--param_ratio", "0.3", "--method", "reconstruct:epochs=many"), 2, "epochs: 'many' is not a whole number"),
        (("--pruning_ratio", "0.5", "--device", "tpu9"), 2, "--device 'tpu9'"),
        (("--pruning_ratio", "0.5", "--device", "meta"), 2, "--device 'meta': it holds no weights"),
    ],
)  # fmt: skip
def test_faults_of_the_options(command, tmp_path, arguments, code, message):
    error = one_line(command("--model", "demo", *arguments), code)
    assert re.search(message, error), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_without_text_the_default_is_magnitude_and_says_so(command, tmp_path, model):
    """No hub to take the text from, then no tokenizer to read it with; a text that is asked for must be had."""
    ratio = ("--pruning_ratio", "0.5", *UNSCORED)
    done = command("--model", "model", *ratio, "--save_model", "out")
    assert done.returncode == 0, done.stderr
    assert "note: pruning by magnitude, because no reconstruction can be made here: " in done.stdout
    assert json.loads((tmp_path / "out" / "report.json").read_text())["importance"] == "magnitude"
    assert "could not be loaded from the hub" in one_line(
        command("--model", "model", "--calibration_data", "c4", *ratio), 1
    )
    for file in model.glob("*token*"):
        file.unlink()
    done = command("--model", "model", *ratio, "--no_save")
    assert done.returncode == 0, done.stderr
    assert "note: pruning by magnitude" in done.stdout


def test_yaml_faults(command, tmp_path):
    for text, message in [
        ("pruning_ratio: 5e-1\n", "line 1: pruning_ratio: '5e-1' is str"),
        ("prunning_ratio: 0.5\n", "did you mean 'pruning_ratio'"),
        ("seed: 1\nseed: 1\n", "line 2: 'seed' is set twice"),
        ("model: !!python/object/apply:os.system ['touch pwned']\n", "line 1"),
    ]:
        (tmp_path / "o.yaml").write_text(text)
        assert message in one_line(command("--config", "o.yaml", "--model", "demo"), 2)
    assert not (tmp_path / "pwned").exists()


def test_text_too_short(command, tmp_path):
    (tmp_path / "short.txt").write_text("On Monday Mara.")
    error = one_line(command("--model", "demo", *HALF, "--eval_data", "short.txt"), 2)
    assert "has 4 tokens, one window needs 128" in error


def test_tokens_are_redacted(command, tmp_path):
    secret = "hf_" + "aB3" * 11
    (tmp_path / secret).write_text("On Monday Mara came to the mill.\n" * 40)
    done = command("--model", "demo", *HALF, "--eval_data", secret, "--save_model", "out", "--max_seq_len", 16)
    assert done.returncode == 0, done.stderr
    everything = done.stdout + done.stderr + "".join(
        (tmp_path / "out" / name).read_text() for name in ("report.json", "report.html", "README.md")
    )  # fmt: skip
    assert secret not in everything
    assert "hf_***" in everything
    done = command("--model", f"./{secret}/none", *HALF, "--traceback")
    assert (done.returncode, secret in done.stderr, "hf_***" in done.stderr) == (1, False, True)
    assert "Traceback" in done.stderr
