"""`evaluate` and `pipeline` as commands: what they measure is what the parts measure, and nothing is done twice."""

import json
from pathlib import Path

import pytest

from llm_pruner.config import evaluate as evaluate_options
from llm_pruner.config.evaluate import EvaluateOptions
from llm_pruner.errors import RunError, UsageError
from llm_pruner.evaluation.run import evaluate, widths
from llm_pruner.model import loading
from llm_pruner.model.per_layer import per_layer_config
from llm_pruner.model.tokenizers import load_tokenizer
from tests.support import tiny
from tests.support.checkpoints import save_tiny


@pytest.fixture
def texts(tmp_path) -> tuple[str, str]:
    found = []
    for name, sentence in (("rain", "Rain fell on the roofs all morning. "), ("tide", "The tide was low. ")):
        (tmp_path / f"{name}.txt").write_text(sentence * 30, encoding="utf-8")
        found.append(str(tmp_path / f"{name}.txt"))
    return tuple(found)


def test_models_side_by_side(tmp_path, texts, capsys):
    from llm_pruner.calibration.windows import token_windows
    from llm_pruner.evaluation.perplexity import perplexity

    one, two = save_tiny(tmp_path / "one"), save_tiny(tmp_path / "two", "gpt2", 1)
    report = evaluate(
        EvaluateOptions(
            model=(one, two), eval_data=texts, max_seq_len=16, speed=True, prompt_len=8, new_tokens=4, repeats=3,
            report=str(tmp_path / "evaluation.json"), device="cpu",
        )
    )  # fmt: skip
    assert [model.name for model in report.models] == ["one", "two"]
    assert report.dense == "one"
    for folder, model in zip((one, two), report.models):
        loaded = loading.load_model(folder, loading.load_config(folder), "auto", "cpu")
        tokenizer = load_tokenizer(folder)
        for text in texts:
            windows = token_windows(Path(text).read_text(), tokenizer, 16)
            assert model.perplexity[text].value == pytest.approx(perplexity(loaded, windows), rel=1e-6)
            assert model.perplexity[text].windows == len(windows)
        assert model.parameters == sum(p.numel() for p in loaded.parameters())
        assert len(model.speed.modes["eager"].decode_tokens_per_second) == 3
    assert set(report.ratios) == {"two"}
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    page = (tmp_path / "evaluation.html").read_text()
    assert "one" in page
    assert "two" in page
    printed = capsys.readouterr().out
    for model in report.models:
        assert f"{model.perplexity[texts[0]].value:,.2f}" in printed
    with pytest.raises(UsageError, match="exists; use `overwrite`"):
        evaluate(EvaluateOptions(model=(one,), report=str(tmp_path / "evaluation.json")))


def test_the_dense_model_comes_first(tmp_path, texts):
    one, two = save_tiny(tmp_path / "one"), save_tiny(tmp_path / "two")
    report = evaluate(EvaluateOptions(model=(one,), dense=two, eval_data=texts[:1], max_seq_len=16))
    assert [model.name for model in report.models] == ["two", "one"]
    assert report.dense == "two"


def test_folders_of_one_name_are_told_apart(tmp_path, texts):
    one, two = save_tiny(tmp_path / "a" / "model"), save_tiny(tmp_path / "b" / "model")
    report = evaluate(EvaluateOptions(model=(one, two, one), eval_data=texts[:1], max_seq_len=16))
    assert [model.name for model in report.models] == [one, two]


def test_widths_of_every_kind_of_configuration():
    assert widths(tiny.config("llama")) == {
        "hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 80
    }  # fmt: skip
    assert widths(tiny.config("gpt2"))["intermediate_size"] == 4 * 48
    own = per_layer_config(tiny.config("llama"), [{"intermediate_size": 40}, {"num_attention_heads": 4}])
    assert widths(own)["intermediate_size"] == [40, 80]
    assert widths(own)["num_attention_heads"] == [8, 4]
    assert widths(own)["num_key_value_heads"] == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "no model"),
        ({"model": ("m",), "eval_data": ("none", "a")}, "none stands alone"),
        ({"model": ("m",), "eval_data": ("none",)}, "nothing to measure"),
        ({"model": ("m",), "num_fewshot": 3}, "`num_fewshot` is about zero-shot tasks"),
        ({"model": ("m",), "repeats": 1}, "repeats: 1 must be a whole number of at least 2"),
        ({"model": ("m",), "device": "cpu", "device_map": "auto"}, "give one of them"),
    ],
)
def test_options_that_cannot_be_meant(flags, message):
    with pytest.raises(UsageError, match=message):
        evaluate_options.resolve(flags)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": ("nowhere/at-all/now",)}, RunError, "there is no folder"),
        ({"eval_data": ("nothing",)}, UsageError, "'nothing' is neither a file nor a data set"),
        ({"report": "report.txt"}, UsageError, "must end in .json"),
        ({"report": "no/such/folder.json"}, UsageError, "not a file in an existing folder"),
        ({"tasks": ("no_such_task_at_all",)}, UsageError, "no task 'no_such_task_at_all'"),
        ({"speed": True, "prompt_len": 1000}, UsageError, "max_position_embeddings"),
    ],
)
def test_faults_are_found_before_anything_is_loaded(tmp_path, monkeypatch, changes, error, message):
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("something was loaded"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        evaluate(EvaluateOptions(**{"model": ("demo",), **changes}))
