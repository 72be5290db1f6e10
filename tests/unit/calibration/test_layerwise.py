"""Calibration: the walk sees what the model computes, holds little, and names the layer that breaks."""

import weakref

import pytest
import torch

from llm_pruner.calibration import activations as calibrate
from llm_pruner.calibration.activations import collect, with_batches
from llm_pruner.calibration.layerwise import walk
from llm_pruner.calibration.needs import ABSOLUTE, CONTRIBUTION, MOMENTS
from llm_pruner.errors import RunError
from llm_pruner.model.axes import HEADS, MLP
from llm_pruner.model.groups import output_projection
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.trace import trace_groups
from tests.support import tiny
from tests.support.steps import prompts

EVERYTHING = (MOMENTS, ABSOLUTE, CONTRIBUTION)


def batches():
    return calibrate.batches_of(prompts(), 64)


@pytest.mark.parametrize("case", tiny.CASES)
def test_the_walk_computes_what_the_model_does(case):
    """The stream behind the last layer, normed, is the model's last hidden state."""
    model = tiny.model(case)
    layers = list(walk(model, batches()))
    norm = next(m for name, m in model.base_model.named_children() if name in ("norm", "ln_f", "final_layer_norm"))
    with torch.no_grad():
        for batch, hidden in zip(batches(), layers[-1].outputs, strict=True):
            assert torch.equal(norm(hidden), model.base_model(batch, use_cache=False).last_hidden_state)


@pytest.mark.parametrize("case", tiny.CASES)
def test_statistics_are_those_of_the_plain_forward(case):
    """Of what o_proj and down_proj read when the whole model runs, one prompt at a time, in float64."""
    model, found = tiny.model(case), {}
    groups = trace_groups(model)
    inputs = collect(model, batches(), groups, EVERYTHING)
    wanted = {output_projection(g).parameter: g for g in groups if g.axis in (HEADS, MLP)}
    assert set(inputs) == set(wanted)
    for name in wanted:
        module = model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_pre_hook(lambda _, args, name=name: found.setdefault(name, []).append(args[0].double()))
    with torch.no_grad():
        for prompt in prompts():
            model(prompt[None])
    for name, rows in found.items():
        tokens = torch.cat([row[0] for row in rows])
        absolute = torch.stack([row[0].abs().mean(0) for row in rows]).mean(0)
        for value, expected in (
            (inputs[name].mean, tokens.mean(0)),
            (inputs[name].variance, tokens.var(0, correction=0)),
            (inputs[name].norm, tokens.norm(dim=0)),
            (inputs[name].absolute, absolute),
        ):
            torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-6)


def test_model_runs_as_before_after_the_walk():
    model = tiny.model("llama")
    expected = tiny.logits(model)
    walked = walk(model, batches())
    next(walked)
    walked.close()
    assert torch.equal(tiny.logits(model), expected)


def test_one_layers_activations_at_a_time():
    """While a layer runs, what earlier layers read is gone."""
    model, seen, most = tiny.model("llama", num_hidden_layers=6), [], 0
    for layer in decoder_layers(model):

        def hook(_, arguments):
            nonlocal most
            seen.append(weakref.ref(arguments[0]))
            most = max(most, sum(ref() is not None for ref in seen))

        layer.mlp.down_proj.register_forward_pre_hook(hook)
    collect(model, batches(), trace_groups(model), EVERYTHING)
    assert len(seen) == 6 * len(batches())
    assert most == 1


@pytest.mark.parametrize(
    ("parameter", "where"),
    [
        ("layers.1.mlp.up_proj.weight", "layer 1: mlp.up_proj"),
        ("layers.0.self_attn.v_proj.weight", "layer 0: self_attn.v_proj"),
    ],
)
def test_activations_that_are_not_finite_name_the_layer(parameter, where):
    model = tiny.model("llama")
    model.model.get_parameter(parameter).data[3, 3] = float("inf")
    with pytest.raises(RunError, match=f"{where} gives NaN or Inf on the calibration data, computed in float32"):
        collect(model, batches(), trace_groups(model), (MOMENTS,))


def test_outputs_that_are_not_finite_name_the_layer():
    model = tiny.model("llama")
    model.model.layers[0].mlp.down_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(RunError, match="layer 0: mlp.down_proj gives NaN or Inf"):
        collect(model, batches(), trace_groups(model), (MOMENTS,))


def test_batches_are_halved_until_they_fit():
    tried = []

    def function(batches):
        tried.append(max(batch.numel() for batch in batches))
        if tried[-1] > 20:
            raise RuntimeError("CUDA out of memory")
        return "done"

    assert with_batches(tiny.model("llama"), prompts(), function) == "done"
    assert tried == sorted(tried, reverse=True)
    assert tried[-1] == 16


def test_a_prompt_that_does_not_fit():
    def function(_):
        raise MemoryError

    with pytest.raises(RunError, match="8 calibration prompts of up to 16 tokens do not fit.*`calibration_seq_len`"):
        with_batches(tiny.model("llama"), prompts(), function)


def test_other_errors_are_not_taken_for_memory():
    def function(_):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        with_batches(tiny.model("llama"), prompts(), function)
