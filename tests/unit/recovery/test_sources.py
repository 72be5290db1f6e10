"""The text that a recovery learns from where none is named."""

import pytest

from llm_pruner.config.recover import RecoverOptions
from llm_pruner.output.places import write_files
from llm_pruner.recovery.sources import find
from tests.support.checkpoints import save_tiny
from tests.support.reports import as_json, pruned


def text_after(folder, calibration: dict | None, **changes) -> str:
    """The text to learn after a calibration on this one."""
    import json

    report = json.dumps(as_json(pruned, calibration=calibration, base_model=None, **changes))
    write_files({folder / "report.json": lambda path: path.write_text(report)})
    return find(RecoverOptions(model=str(folder), method="lora", eval_data="none")).data


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ({"wikitext2": 8, "c4": 24, "alpaca": 16}, "c4"),
        ({"self": 24, "alpaca": 8}, "alpaca"),
        ({"self": 32}, "wikitext2"),
    ],
)
def test_of_several_calibration_texts_it_is_the_one_of_most_windows(tmp_path, shares, text):
    """But not the one that the dense model wrote, which is not at hand any more."""
    save_tiny(tmp_path)
    sources = [{"data": name, "share": count / 48, "windows": count} for name, count in shares.items()]
    mixed = {"data": " ".join(shares), "nsamples": sum(shares.values()), "seq_len": 8, "sources": sources}
    assert text_after(tmp_path, mixed) == text


def test_of_one_calibration_text_it_is_that_one(tmp_path):
    save_tiny(tmp_path)
    assert text_after(tmp_path, {"data": "alpaca", "nsamples": 8, "seq_len": 8}) == "alpaca"
    assert text_after(tmp_path, {"data": "self", "nsamples": 8, "seq_len": 8}) == "wikitext2"


def test_without_a_calibration_text_it_is_the_first_whose_tokens_were_counted(tmp_path):
    save_tiny(tmp_path)
    vocabulary = {"data": ["c4", "alpaca"], "covered": 0.9, "bytes_per_token": {}}
    assert text_after(tmp_path, None, vocabulary=vocabulary) == "c4"
    assert text_after(tmp_path, {"data": "self", "nsamples": 8, "seq_len": 8}, vocabulary=vocabulary) == "c4"
    assert text_after(tmp_path, {"data": "alpaca", "nsamples": 8, "seq_len": 8}, vocabulary=vocabulary) == "alpaca"
    # a plan told the tokens
    assert text_after(tmp_path, None, vocabulary=vocabulary | {"data": None, "covered": None}) == "wikitext2"
