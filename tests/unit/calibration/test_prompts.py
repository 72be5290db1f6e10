"""The prompts that calibration runs on: windows of a text, and Alpaca's records."""

import json

import pytest
import torch

from llm_pruner.calibration.prompts import calibration_prompts


class Letters:
    """A token for each character, its code."""

    def __call__(self, text, verbose=False):
        return {"input_ids": list(map(ord, text))}


@pytest.fixture
def alphabet(tmp_path):
    """Every token tells its place: 0 … 39 from "0" on."""
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(48 + i) for i in range(40)))
    return str(path)


def offsets(path: str, seed: int, count: int = 200, length: int = 8) -> list[int]:
    prompts = calibration_prompts(path, count, length, seed, Letters())
    assert len(prompts) == count
    for prompt in prompts:
        assert prompt.dtype == torch.long
        assert prompt.tolist() == list(range(int(prompt[0]), int(prompt[0]) + length)), "a window is one piece"
    return [int(prompt[0]) - 48 for prompt in prompts]


def test_calibration_windows_are_at_random_offsets(alphabet):
    """Any of 40 - 8 + 1 = 33 offsets, so that windows overlap and come in no order; each is missed with p = 0.002."""
    found = offsets(alphabet, seed=0)
    assert min(found) == 0
    assert max(found) == 32
    assert len(set(found)) >= 30
    assert found != sorted(found)
    assert 12 < sum(found) / len(found) < 20
    assert found == offsets(alphabet, seed=0)
    assert found != offsets(alphabet, seed=1)
    assert offsets(alphabet, seed=0, count=3, length=40) == [0, 0, 0]


def test_wikitext2_is_calibrated_on_the_train_split_joined_by_spaces(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return {"text": ["ab", "", "cd"]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (prompt,) = calibration_prompts("wikitext2", 1, 6, 0, Letters())
    assert bytes(prompt.tolist()) == b"ab  cd"
    assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "train"})]


def test_alpaca_prompts(tmp_path):
    """Without their answers, an absent input is empty; a random choice, no record twice, cut off at the length."""
    path = tmp_path / "alpaca.json"
    records = [{"instruction": f"Do {i}", "input": "it" * i, "output": "SECRET"} for i in range(9)]
    path.write_text(json.dumps([*records, {"instruction": "Go"}]))
    wanted = {f"Instruction: Do {i}\nInput: {'it' * i}\nResponse:" for i in range(9)}
    wanted.add("Instruction: Go\nInput: \nResponse:")

    def texts(count, length=100, seed=0):
        return ["".join(map(chr, p)) for p in calibration_prompts(str(path), count, length, seed, Letters())]

    assert len(texts(10)) == 10
    assert set(texts(10)) == wanted
    assert set(texts(4)) < wanted
    assert len(set(texts(4))) == 4
    assert texts(4) == texts(4)
    assert any(texts(4) != texts(4, seed=seed) for seed in (1, 2, 3))
    assert all(text == "Instruction" for text in texts(3, length=11))
