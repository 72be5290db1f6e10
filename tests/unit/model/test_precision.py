"""Where products in bfloat16 are quick."""

import pytest
import torch

from llm_pruner.model.precision import has_quick_bfloat16


@pytest.mark.parametrize(
    ("amx", "avx512", "quick"), [(False, False, False), (True, False, True), (False, True, True), (True, True, True)]
)
def test_a_cpu_with_instructions_of_its_own(amx, avx512, quick, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    assert has_quick_bfloat16(torch.device("cpu")) is quick


def test_a_torch_that_does_not_tell(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert has_quick_bfloat16(torch.device("cpu")) is False


def test_another_device():
    assert has_quick_bfloat16(torch.device("mps")) is False


@pytest.mark.parametrize("quick", [True, False])
def test_a_gpu_that_only_emulates_it_is_not(quick, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or quick)
    assert has_quick_bfloat16(torch.device("cuda")) is quick
