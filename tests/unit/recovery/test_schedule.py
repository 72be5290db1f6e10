"""The learning rate over the steps."""

import pytest

from llm_pruner.recovery.schedule import Schedule


def test_the_schedule():
    schedule = Schedule(steps=100, limit=None, warmup=0.1, save_seconds=1e9)
    rates = []
    for step in range(101):
        schedule._move(step)
        rates.append(schedule.rate())
    assert rates[0] == pytest.approx(0.05)
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)
