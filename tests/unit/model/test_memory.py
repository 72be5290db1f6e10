"""Free memory goes back to the system."""

import sys
from pathlib import Path

import pytest
import torch

from llm_pruner.model.memory import give_back

MIB = 2**20


def resident() -> int:
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_freed_tensors_are_given_back():
    """Each of them below the threshold from which memory goes back at once, with one that stays behind each."""
    # freed, it puts the threshold above what follows
    torch.ones(30 * MIB // 4)
    many = [torch.ones(MIB // 4) for _ in range(400)]
    del many[::2]
    before = resident()
    give_back()
    assert before - resident() > 100 * MIB
    assert len(many) == 200


def test_other_systems_have_no_such_call(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("it was called"))
    give_back()
