"""Sizes as they may be written."""

import pytest

from llm_pruner.cli.main import parse
from llm_pruner.config.quantities import parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("1.5GiB", 3 * 2**29), ("500MB", 5 * 10**8), ("1000", 1000), (" 2 kib ", 2048)],
)
def test_sizes(text, size):
    assert parse_bytes(text, "memory") == size
    assert parse(["--model", "m", "--target_memory", text]).target_memory == text
