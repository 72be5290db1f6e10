"""Perplexity: the definition, in chunks, for every family, within memory."""

import math

import pytest
import torch
import torch.nn.functional as F

from llm_pruner.errors import RunError
from llm_pruner.evaluate import perplexity as module
from llm_pruner.evaluate.perplexity import perplexity
from tests import tiny


def by_definition(model, windows) -> float:
    """exp of the mean over windows of the mean next-token loss, from the model's own logits, one window at a time."""
    losses = []
    for window in windows:
        logits = tiny.logits(model, window[None])[0].double()
        losses.append(F.cross_entropy(logits[:-1], window[1:]).item())
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("case", tiny.CASES)
def test_equals_the_definition_on_every_family(case, monkeypatch):
    monkeypatch.setattr(module, "LOGITS", 7 * 96)  # chunks of seven positions
    model, windows = tiny.model(case), tiny.tokens(5, 16)
    expected = by_definition(model, windows)
    assert perplexity(model, windows) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, windows, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity():
    model = tiny.model("llama")
    model.lm_head.weight.data.zero_()
    assert perplexity(model, tiny.tokens(3, 9)) == pytest.approx(96, rel=1e-5)


def test_full_logits_are_never_held(monkeypatch):
    monkeypatch.setattr(module, "LOGITS", 10 * 96)
    model, sizes = tiny.model("llama"), []
    model.lm_head.register_forward_hook(lambda _, __, logits: sizes.append(logits.numel()))
    perplexity(model, tiny.tokens(4, 60))
    assert max(sizes) <= 10 * 96
    assert sum(sizes) == 4 * 59 * 96


def test_smaller_batches_when_memory_runs_out(monkeypatch):
    model, windows = tiny.model("llama"), tiny.tokens(7, 16)
    expected, summed_loss, sizes = perplexity(model, windows), module._summed_loss, []

    def short_of_memory(model, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return summed_loss(model, batch)

    monkeypatch.setattr(module, "_summed_loss", short_of_memory)
    assert perplexity(model, windows, batch_size=8) == pytest.approx(expected, rel=1e-6)
    assert sizes == [7, 4, 2, 2, 2, 1]


def test_out_of_memory_at_one_window_gives_advice(monkeypatch):
    def no_memory(*_):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")

    monkeypatch.setattr(module, "_summed_loss", no_memory)
    with pytest.raises(RunError, match="a window of 16 tokens does not fit in memory; use a smaller --max_seq_len"):
        perplexity(tiny.model("llama"), tiny.tokens(2, 16))


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(module, "_summed_loss", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        perplexity(tiny.model("llama"), tiny.tokens(2, 16))


def test_broken_model_is_not_a_number_and_no_crash():
    model = tiny.model("llama")
    model.lm_head.weight.data[0, 0] = float("nan")
    assert math.isnan(perplexity(model, tiny.tokens(2, 16)))
    model.lm_head.weight.data[0, 0] = 1e9
    assert perplexity(model, tiny.tokens(2, 16)) == math.inf
