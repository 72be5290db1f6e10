"""Pruning a model in memory."""

import pytest
import torch

from llm_pruner.config.prune import PruneOptions
from tests.support import tiny
from tests.support.in_memory import prune_model
from tests.support.reconstructing import method_of, prompts


def test_it_is_what_prune_model_does_with_text_alone():
    """In the mode that the model was in."""
    expected = method_of(tiny.model("llama"), prune="mlp=0.3").model.state_dict()
    new, plan = prune_model(tiny.model("llama").train(), PruneOptions(prune="mlp=0.3", epochs=0), prompts())
    assert (plan.importance, new.training) == ("reconstruct", True)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in new.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_target_memory_is_in_bytes_of_the_models_dtype(dtype):
    model = tiny.model("llama", dtype=dtype)
    before = sum(p.numel() * p.element_size() for p in model.parameters())
    _, plan = prune_model(model, PruneOptions(importance="mag_sp", target_memory=f"{0.8 * before / 1000:.3f}kB"))
    assert plan.bytes_after == pytest.approx(0.8 * before, abs=0.01 * before)
