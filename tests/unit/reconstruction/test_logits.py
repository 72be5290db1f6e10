"""The end of a reconstruction: KL from hidden states, and a last layer that is fitted to the logits."""

import copy
from dataclasses import replace

import pytest
import torch

from llm_pruner.calibration.layerwise import walk
from llm_pruner.model.layers import decoder_layers
from llm_pruner.reconstruction import logits as module
from llm_pruner.reconstruction.layer import Settings
from llm_pruner.reconstruction.logits import divergence, logits_of, optimise_logits
from tests.support import tiny
from tests.support.reconstructing import calibration, reconstructed

AXES = {"llama": "all", "llama_tied": "heads", "gemma3_text": "mlp", "gpt_neox": "all", "gpt2": "mlp"}


@pytest.mark.parametrize("case", ["llama", "gemma3_text", "gpt2"])
def test_logits_are_the_models(case):
    """With whatever the model does behind the last layer."""
    model = tiny.model(case)
    ids, last = tiny.tokens(2, 12), []
    hook = decoder_layers(model)[-1].register_forward_hook(lambda _, __, out: last.append(out))
    with torch.no_grad():
        expected = model(ids).logits
        hook.remove()
        torch.testing.assert_close(logits_of(model, ids, last[0]), expected)


def test_only_held_out_tokens_count():
    model, tokens = tiny.model("llama"), calibration(batches=2)
    stream = [torch.randn(*batch.shape, model.config.hidden_size) for batch in tokens.batches]
    other = [own if held else own * torch.nan for own, held in zip(stream, tokens.held, strict=True)]
    assert divergence(model, model, tokens, stream, other) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("at_once", [1, 5])
def test_divergence_of_some_tokens_at_a_time(at_once, monkeypatch):
    model, tokens, seen, own = tiny.model("llama"), calibration(batches=2), [], module.logits_of
    streams = [[torch.randn(*batch.shape, model.config.hidden_size) for batch in tokens.batches] for _ in range(2)]
    whole = divergence(model, model, tokens, *streams)
    monkeypatch.setattr(module, "LOGITS", at_once * model.config.vocab_size)
    monkeypatch.setattr(module, "logits_of", lambda *rest: seen.append(rest[1].numel()) or own(*rest))
    assert divergence(model, model, tokens, *streams) == pytest.approx(whole, rel=1e-5)
    assert max(seen) == at_once


def test_a_disturbed_layer_finds_back():
    model, tokens = tiny.model("llama"), calibration(prompts=64, batches=7)
    *_, last = walk(model, tokens.batches)
    last.run()
    layer = copy.deepcopy(last.module)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * parameter.square().mean().sqrt() * torch.randn_like(parameter)

    def run(batch):
        arguments, options = last.arguments[batch]
        return layer(last.stream[batch], *arguments, **options)

    def error():
        with torch.no_grad():
            return divergence(model, model, tokens, last.outputs, [run(batch) for batch in range(len(tokens.held))])

    before = error()
    optimise_logits(layer, run, last.module, (model, model), tokens, last.outputs, 8)
    assert error() < 0.5 * before


@pytest.mark.slow
@pytest.mark.parametrize("case", AXES)
def test_the_last_layer_alone_is_fitted_to_the_logits(case):
    after = tiny.axes(case)[AXES[case]]
    tokens = calibration(batches=4)
    without, found = (
        reconstructed(tiny.model(case), after, Settings(epochs=2, logits=own), tokens) for own in (False, True)
    )
    assert found.kl < without.kl
    own, last = dict(without.model.named_parameters()), f".{found.model.config.num_hidden_layers - 1}."
    changed = {name for name, p in found.model.named_parameters() if not torch.equal(p, own[name])}
    assert changed
    assert all(last in name for name in changed)
    assert all(parameter.grad is None for parameter in found.model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("tokens_at_once", [1, 5])
def test_logits_of_some_tokens_at_a_time(tokens_at_once, monkeypatch):
    """Where a batch has too many of them: the same steps."""
    after, tokens = tiny.axes("llama")["mlp"], calibration(batches=4)
    whole, prompts = reconstructed(tiny.model("llama"), after, Settings(epochs=2), tokens), len(tokens.batches[0])
    calls, own = [], module.logits_of
    monkeypatch.setattr(module, "LOGITS", tokens_at_once * prompts * tiny.model("llama").config.vocab_size)
    monkeypatch.setattr(module, "logits_of", lambda *rest: calls.append(rest[1].shape[1]) or own(*rest))
    found = reconstructed(tiny.model("llama"), after, Settings(epochs=2), tokens)
    assert min(calls) <= tokens_at_once
    assert found.kl == pytest.approx(whole.kl, rel=1e-4)
    for name, parameter in found.model.named_parameters():
        torch.testing.assert_close(parameter, whole.model.get_parameter(name), atol=1e-4, rtol=1e-3)


def test_without_epochs_there_is_nothing_of_it():
    after = tiny.axes("llama")["heads"]
    recipe = Settings(epochs=0)
    without, found = (
        reconstructed(tiny.model("llama"), after, replace(recipe, logits=own), calibration()) for own in (False, True)
    )
    for name, parameter in found.model.named_parameters():
        assert torch.equal(parameter, without.model.get_parameter(name))
