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


def test_bits_per_byte_are_there_where_models_have_other_tokens():
    def printed(windows: int) -> str:
        models = [
            {"name": name, "parameters": 1, "bytes": 1, "perplexity": {"t": {"value": 2.0, "max_seq_len": 8, **own}}}
            for name, own in (("a", {"windows": 5, "bits_per_byte": 0.51}), ("b", {"windows": windows}))
        ]
        return tables(evaluated(models=models, ratios={}))

    assert "bits per byte" not in printed(5)
    (row,) = [line.split() for line in printed(6).splitlines() if line.startswith("bits per byte")]
    assert row == ["bits", "per", "byte,", "t", "0.5100", "-"]
