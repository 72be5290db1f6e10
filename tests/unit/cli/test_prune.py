"""Pruning from the options on, in this process: what is calibrated on, and what is told of it."""

import json

import pytest
import torch

from llm_pruner import prune_checkpoint
from llm_pruner.calibration import prompts
from llm_pruner.calibration.texts import HubError
from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import UsageError
from llm_pruner.shape.plan import Plan
from tests.support.checkpoints import save_tiny

SMALL = {"eval_data": "none", "no_save": True, "nsamples": 8, "calibration_seq_len": 16, "param_ratio": 0.3}


@pytest.fixture
def text(tmp_path) -> str:
    path = tmp_path / "text.txt"
    path.write_text("On Monday Mara came to the mill.\n" * 40)
    return str(path)


def test_a_mixture_with_text_of_the_model_is_calibrated_on_and_told(tmp_path, text, capsys):
    asked = ("demo=0.5", text, "self")
    options = PruneOptions(model="demo", importance="amp", calibration_data=asked, **SMALL)
    report = prune_checkpoint(options)
    assert report.calibration.nsamples == 8
    assert [(own.data, own.share, own.windows) for own in report.calibration.sources] == [
        ("demo", 0.5, 4), (text, 0.25, 2), ("self", 0.25, 2),
    ]  # fmt: skip
    told = capsys.readouterr().out
    assert f"calibration_data=demo=0.5 {text} self, " in told
    assert f"calibration: 8 windows of 16 tokens at most, of demo (50%), {text} (25%), self (25%), seed 0" in told


def test_scores_are_of_one_mixture(tmp_path, text):
    scores = str(tmp_path / "scores.safetensors")

    def scored(*data: str) -> None:
        prune_checkpoint(PruneOptions(model="demo", importance="amp", calibration_data=data, scores=scores, **SMALL))

    scored("demo", f"{text}=0.25")
    scored("demo", f"{text}=0.25")
    with pytest.raises(UsageError, match="was made with calibration_data"):
        scored("demo", f"{text}=0.5")
    with open(text, "a") as file:
        file.write("On Sunday, too.")
    with pytest.raises(UsageError, match="was made with calibration_data"):
        scored("demo", f"{text}=0.25")


def test_a_plan_names_all_texts_and_a_replay_calibrates_on_them(tmp_path, text):
    """Its biases need the means of the same windows."""
    saved = str(tmp_path / "plan.json")
    options = {"model": "demo", **SMALL, "calibration_data": ("demo", f"{text}=0.25"), "compensate": "bias"}
    prune_checkpoint(PruneOptions(**options, importance="flap", save_plan=saved))
    assert Plan.load(saved).calibration["data"] == ["demo", f"{text}=0.25"]
    report = prune_checkpoint(PruneOptions(model="demo", eval_data="none", no_save=True, plan=saved))
    assert [own.data for own in report.calibration.sources] == ["demo", text]
    assert report.calibration.nsamples == 8


def test_a_dry_run_does_not_take_the_model_for_its_text(monkeypatch, text):
    from llm_pruner.model import loading

    monkeypatch.setattr(loading, "load_model", None)
    for method in ({"method": "reconstruct"}, {}):
        options = PruneOptions(
            model="demo", param_ratio=0.3, dry_run=True, calibration_data=(text, "self=0.5"), **method
        )
        assert isinstance(prune_checkpoint(options), Plan)


def test_a_share_that_cannot_be_meant_ends_even_a_dry_run(text):
    with pytest.raises(UsageError, match="the shares sum to 0.9, not to 1"):
        prune_checkpoint(
            PruneOptions(
                model="demo", param_ratio=0.3, dry_run=True, method="reconstruct",
                calibration_data=(f"{text}=0.4", "self=0.5"),
            )
        )  # fmt: skip


@pytest.fixture
def hub(monkeypatch, text):
    """The hub gives wikitext2 only."""
    drawn = prompts.text_windows

    def windows(name, *others):
        if name in ("c4", "instructions"):
            raise HubError(f"{name} could not be loaded from the hub (ConnectionError)")
        return drawn(text if name == "wikitext2" else name, *others)

    monkeypatch.setattr(prompts, "text_windows", windows)


def test_the_usual_mixture_of_a_reconstruction_does_without_what_the_hub_does_not_give(tmp_path, hub, capsys):
    """The work folder keeps what the model wrote."""
    small = SMALL | {"epochs": 0, "search_minutes": 0.0, "work_dir": str(tmp_path / "work")}
    options = PruneOptions(model=save_tiny(tmp_path / "model"), method="reconstruct", **small)
    report = prune_checkpoint(options)
    assert [(own.data, own.windows) for own in report.calibration.sources] == [("wikitext2", 3), ("self", 5)]
    assert report.calibration.data == "mix"
    told = capsys.readouterr().out
    assert "note: the hub does not give c4 and instructions; the model itself writes text in their place" in told
    (kept,) = (tmp_path / "work").glob("self-*.safetensors")
    assert prune_checkpoint(options).reconstruction == report.reconstruction
    assert f"self-written text taken from {kept}" in capsys.readouterr().out


def test_a_mixture_that_was_named_needs_all_of_its_texts(tmp_path, hub):
    options = PruneOptions(
        model=save_tiny(tmp_path / "model"), method="reconstruct", calibration_data=("mix",), **SMALL
    )
    with pytest.raises(HubError, match="c4 could not be loaded"):
        prune_checkpoint(options)


def test_the_model_of_the_tokens_that_stay_writes_text_with_their_tokenizer(tmp_path, monkeypatch, text):
    seen = []
    write = prompts.self_written

    def written(model, tokenizer, *others):
        windows = write(model, tokenizer, *others)
        seen.append((model.config.vocab_size, len(tokenizer), int(torch.stack(windows).max())))
        return windows

    monkeypatch.setattr(prompts, "self_written", written)
    asked = SMALL | {"calibration_data": (text, "self"), "epochs": 0, "search_minutes": 0.0}
    asked |= {"method": "reconstruct", "work_dir": str(tmp_path / "work")}
    for ratio in ("0.3", "0.4"):
        report = prune_checkpoint(PruneOptions(model="demo", prune=f"vocab={ratio},mlp", **asked))
        assert [(own.data, own.windows) for own in report.calibration.sources] == [(text, 4), ("self", 4)]
        # the text that the model writes is not counted
        assert report.vocabulary.data == [text]
    (of_448, of_384) = seen
    assert of_448[:2] == (448, 448)
    assert of_384[:2] == (384, 384)
    assert of_384[2] < 384
    # the work folder keeps the text of either vocabulary
    assert len(list((tmp_path / "work").glob("self-*.safetensors"))) == 2


def test_the_report_reads_back(text):
    from llm_pruner.output import reports

    options = PruneOptions(model="demo", importance="amp", calibration_data=(text, "self"), **SMALL)
    report = prune_checkpoint(options)
    assert reports.from_dict(json.loads(json.dumps(report.to_dict())), "report.json").calibration == report.calibration
