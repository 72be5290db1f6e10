"""The reconstruction on the trained reference model: the bars that benchmarks/quality.py measures in full."""

import math

import pytest

from llm_pruner import prune_checkpoint
from llm_pruner.config.prune import PruneOptions

pytestmark = pytest.mark.shared
CALIBRATION = {"nsamples": 32, "calibration_seq_len": 256}
BEST = {"method": "reconstruct", "epochs": 2}  # of so little text the default is 8, a little better and thrice as slow


@pytest.fixture(scope="module")
def loss(shared, tmp_path_factory):
    """(options) → log(perplexity / dense), over a hundredth of the test text, calibrated on the validation text."""
    data = shared / "data" / "wikitext-2"
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text((data / "test.txt").read_text(encoding="utf-8")[:13_000], encoding="utf-8")

    def measure(**options) -> float:
        report = prune_checkpoint(
            PruneOptions(
                model=str(shared / "models" / "llama-6m"), dtype="float32", eval_data=str(text), max_seq_len=256,
                no_save=True, calibration_data=str(data / "valid.txt"), **CALIBRATION, **options,
            )
        )  # fmt: skip
        return math.log(report.perplexity.after / report.perplexity.before)

    return measure


def test_a_stock_checkpoint_keeps_far_more_than_flap_with_widths_per_layer(loss):
    flap = loss(param_ratio=0.3, importance="flap", structure="AL-AM", compensate="bias")
    best = loss(target="num_attention_heads=6,num_key_value_heads=3,intermediate_size=480", **BEST)
    assert 0 < best <= 0.45 * flap


def test_every_width_is_far_better_than_by_magnitude(loss):
    assert 0 < loss(pruning_ratio=0.25, **BEST) <= 0.20 * loss(pruning_ratio=0.25, importance="magnitude")
