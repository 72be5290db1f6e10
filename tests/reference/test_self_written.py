"""Text that a trained model writes itself is sampled from its own distribution."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_pruner.calibration.self_written import self_written

pytestmark = pytest.mark.shared


def test_the_loss_on_it_is_the_entropy_of_the_model(shared):
    """Which it is of samples of the model itself, and of no other text."""
    folder = shared / "models" / "llama-6m"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    windows = torch.stack(self_written(model, AutoTokenizer.from_pretrained(folder), 16, 128, seed=0))
    with torch.no_grad():
        chances = model(windows).logits[:, :-1].log_softmax(-1)
    losses = -chances.gather(-1, windows[:, 1:, None])[..., 0]
    entropies = -(chances.exp() * chances).sum(-1)
    error = (losses - entropies).std() / losses.numel() ** 0.5
    assert abs(losses.mean() - entropies.mean()) < 3 * error
    assert 3 * error < 0.1 * entropies.mean()
