"""What came of a recovery."""

import pytest

from llm_pruner.output.reports import Measured
from llm_pruner.recovery.outcome import share


def test_the_share_of_the_gap():
    assert share(10.0, Measured(40.0, 20.0)) == pytest.approx(0.5)
    assert share(10.0, Measured(40.0, 80.0)) == pytest.approx(-0.5)
    assert share(10.0, Measured(9.0, 8.0)) is None
    assert share(None, Measured(9.0, 8.0)) is None
