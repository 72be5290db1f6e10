"""The tables that an evaluation prints."""

from llm_pruner.evaluation.tables import tables
from tests.support.reports import evaluated


def test_tables():
    eager = {
        "prefill_tokens_per_second": [1.0, 3.0, 2.0], "decode_tokens_per_second": [4.0],
        "time_to_first_token_seconds": [0.5],
    }  # fmt: skip
    model = {"name": "m", "parameters": 1234, "bytes": 5, "speed": {"modes": {"eager": eager}, "peak_memory": 2**21}}
    model["perplexity"] = {"t": {"value": None, "windows": 1, "max_seq_len": 2}}
    ratio = {"eager": {"decode": {"median": 1.5, "low": 1.0, "high": 2.0}}}
    printed = tables(evaluated(models=[model], ratios={"m": ratio}))
    for part in ("1,234", "not finite", "2.0", "1.50 (1.00 – 2.00)", "500.0"):
        assert part in printed
