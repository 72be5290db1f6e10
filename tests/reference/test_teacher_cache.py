"""Distillation of a trained model against its cached likeliest tokens comes to what it comes to against the model."""

import pytest

from llm_pruner import RecoverOptions, prune_checkpoint
from llm_pruner.config.prune import PruneOptions
from llm_pruner.recovery.run import recover

pytestmark = [pytest.mark.shared, pytest.mark.usefixtures("no_fresh_process")]


@pytest.mark.slow
def test_it_recovers_as_much_as_with_the_teacher(shared, tmp_path):
    """Of 4,096 tokens 256 are kept, which have nine tenths of the mass."""
    model, text = str(shared / "models" / "llama-6m"), str(shared / "data" / "wikitext-2" / "valid.txt")
    half = str(tmp_path / "half")
    prune_checkpoint(
        PruneOptions(
            model=model, param_ratio=0.3, importance="wanda_sp", calibration_data=(text,), nsamples=16,
            calibration_seq_len=64, save_model=half, eval_data="none",
        )
    )  # fmt: skip
    (tmp_path / "scored.txt").write_text((shared / "data" / "wikitext-2" / "test.txt").read_text()[:40_000])
    found = {}
    for k in (None, 256, 4):
        cached = {"teacher_cache": str(tmp_path / f"cache-{k}"), "teacher_top_k": k} if k else {}
        found[k] = recover(
            RecoverOptions(
                model=half, teacher=model, method="distil", data=text, train_seq_len=64, nsamples=160, steps=40,
                train_batch_size=8, eval_data=str(tmp_path / "scored.txt"), max_seq_len=128, device="cpu",
                mixed_precision="no", save_model=str(tmp_path / f"out-{k}"), **cached,
            )
        ).perplexity  # fmt: skip
    before, plain, cached = found[None].before, found[None].after, found[256].after
    assert plain < 0.95 * before
    assert abs(cached - plain) < 0.1 * (before - plain)
    assert abs(found[4].after - plain) > abs(cached - plain), "k decides"
