"""Sparse activations and weights on the trained model: what the published tables say of large ones holds for it."""

from pathlib import Path

import pytest

from llm_pruner.cli.sparsify import sparsify_checkpoint
from llm_pruner.config import sparsify
from tests import REPOSITORY

pytestmark = pytest.mark.shared


def measured(shared: Path, row: str, model: str | None = None, **values) -> dict:
    """Perplexity before and after, on every hundredth window."""
    wikitext = shared / "data" / "wikitext-2"
    flags = {
        "model": (model or str(shared / "models" / "llama-6m"),), "eval_data": str(wikitext / "test.txt"),
        "dtype": "float32",  # in bfloat16 a CPU without instructions for it takes five times as long
        "calibration_data": str(wikitext / "valid.txt"), "nsamples": 8, "max_seq_len": 256, "eval_stride": 100,
        **values,
    }  # fmt: skip
    return sparsify_checkpoint(
        sparsify.resolve(flags, str(REPOSITORY / "configs" / "sparse" / f"{row}.yaml"))
    ).perplexity


def test_the_order_of_the_published_tables(shared):
    rows = ("act_2_4", "act_8_16", "act_0.2", "act_0.5", "weight_2_4", "weight_8_16")
    found = {row: measured(shared, row) for row in rows}
    dense = found["act_2_4"].before
    after = {row: own.after for row, own in found.items()}
    assert after["act_8_16"] < after["act_2_4"]
    assert after["weight_8_16"] < after["weight_2_4"]
    assert dense < after["act_0.2"] < 1.01 * dense
    assert after["act_0.5"] < after["act_8_16"]  # half of the token, without the groups
    assert after["act_2_4"] < after["weight_2_4"]
    assert after["act_8_16"] < after["weight_8_16"]


def test_massive_channels_do_not_harm_what_is_scaled_and_permuted(shared, tmp_path, monkeypatch):
    """They ruin 8:16 by magnitude and, even more, with a shift of each token's mean."""
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    from sparse import massive

    massive(shared / "models" / "llama-6m", tmp_path / "massive")
    model = str(tmp_path / "massive")
    plain = measured(shared, "act_8_16")
    ruined, shifted = (measured(shared, row, model) for row in ("act_8_16", "act_8_16_pts"))
    assert ruined.before == pytest.approx(plain.before, rel=2e-3)  # the same function
    assert ruined.after > 1.25 * plain.after
    assert shifted.after > 10 * plain.after
    best = measured(shared, "act_8_16_combined", model, epochs=2)
    assert best.after < plain.after
