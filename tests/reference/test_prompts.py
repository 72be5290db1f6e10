"""Calibration windows of real text, by a real tokenizer."""

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from llm_pruner.calibration.prompts import calibration_prompts


@pytest.mark.shared
def test_calibration_windows_are_pieces_of_the_text(shared, tmp_path):
    """Of one tokenisation of the whole file, at offsets in no order; the same for a seed; they may overlap."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "llama-6m")
    text = (shared / "data" / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")[:60_000]
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    ids = np.array(tokenizer(text, verbose=False)["input_ids"])
    length = 128
    count = 2 * len(ids) // length

    def windows(seed: int) -> torch.Tensor:
        return torch.stack(calibration_prompts(str(path), count, length, seed, tokenizer))

    places = []
    for window in windows(0).numpy():
        starts = np.flatnonzero(ids[: len(ids) - length + 1] == window[0])
        (place,) = [start for start in starts if np.array_equal(ids[start : start + length], window)]
        places.append(int(place))
    assert len(set(places)) > 0.9 * count
    assert (np.diff(sorted(places)) < length).any(), "windows that overlap"
    assert 0.4 < np.mean(np.diff(places) > 0) < 0.6, "in no order"
    assert len({place % length for place in places}) > length / 4, "on no grid"
    quarters = np.histogram(places, 4, (0, len(ids) - length))[0]
    assert (quarters > count / 8).all(), "from all over the text"
    assert torch.equal(windows(0), windows(0))
    assert not torch.equal(windows(0), windows(1))
