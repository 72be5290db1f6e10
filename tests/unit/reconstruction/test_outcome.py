"""What a reconstruction says, keeps and leaves behind."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from llm_pruner.calibration.layerwise import walk
from llm_pruner.errors import UsageError
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.model.depth import shallow_config
from llm_pruner.model.families import widths_of
from llm_pruner.model.layers import decoder_layers
from llm_pruner.output.checkpoint import write
from llm_pruner.reconstruction.reconstruct import reconstruct
from llm_pruner.reconstruction.tokens import HELD, split
from tests.support import tiny
from tests.support.reconstructing import BRIEF, FITTED, PLAIN, calibration, divergence, planned, reconstructed


@pytest.mark.parametrize(("case", "name"), [("gemma", "all"), ("gpt2", "all"), ("gemma3_text", "mlp")])
def test_kl_is_that_of_the_two_models(case, name):
    """On the held-out tokens, although neither model is run as a whole."""
    model = tiny.model(case)
    found = reconstructed(model, tiny.axes(case)[name], BRIEF)
    assert found.kl == pytest.approx(divergence(model, found.model, calibration().batches[-1:]), rel=1e-4)


@pytest.mark.parametrize("case", ["llama", "gpt_neox"])
def test_errors_are_relative_to_the_energy_of_each_token(case):
    """Of the stream behind every layer, on the held-out tokens."""
    model, held = tiny.model(case), calibration().batches[-1:]
    found = reconstructed(model, tiny.axes(case)["mlp"], BRIEF)
    for dense, pruned, error in zip(walk(model, held), walk(found.model, held), found.errors, strict=True):
        dense.run()
        pruned.run()
        wanted, given = dense.outputs[0], pruned.outputs[0]
        expected = ((wanted - given).square().sum(-1) / wanted.square().sum(-1)).mean().item()
        assert error == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
def test_all_widths_and_no_least_squares_is_the_identity(case):
    model = tiny.model(case)
    found = reconstructed(model, widths_of(model.config), PLAIN)
    for name, parameter in found.model.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name
    assert torch.equal(tiny.logits(found.model), tiny.logits(model))
    assert found.kl == 0
    assert found.errors == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["llama", "phi3", "gemma3_text", "gpt2", "gpt_neox"])
def test_every_layer_has_its_own_widths(case, tmp_path):
    model = tiny.model(case)
    before = widths_of(model.config)
    first, second = before.but({MLP: 50}), before.but({MLP: 31})
    if case not in tiny.DERIVED:
        first = first.but({HEADS: 2, KV_HEADS: 2})
        second = second.but({HEADS: 6, KV_HEADS: 3})
    found, plain = (reconstructed(model, (first, second), recipe) for recipe in (FITTED, PLAIN))
    assert found.kl < 0.95 * plain.kl
    assert found.model.config.model_type == f"pruned_{model.config.model_type}"
    assert [len(found.kept[f"layers.{layer}.mlp"]) for layer in (0, 1)] == [50, 31]
    write(found.model, None, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(tiny.logits(loaded), tiny.logits(found.model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("case", ["llama", "gemma3_text", "gpt2"])
def test_whole_layers_go(case):
    """The second and the fourth of four; what that does is mended by the others. One of another kind in gemma3."""
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model = tiny.model(case, num_hidden_layers=4, **({"layer_types": kinds} if case == "gemma3_text" else {}))
    groups, plan, _ = planned(model, {"mlp": 0.3})
    config = shallow_config(planned(model, {"mlp": 0.3})[2], (0, 2))
    plain, found = (
        reconstruct(model, groups, plan.after, config, calibration(), recipe, layers=(0, 2))
        for recipe in (PLAIN, FITTED)
    )
    assert found.kl == pytest.approx(divergence(model, found.model, calibration().batches[-1:]), rel=1e-4)
    assert found.kl < 0.95 * plain.kl
    assert len(found.errors) == 2
    new = found.settle(model)
    assert new.config.num_hidden_layers == len(decoder_layers(new)) == 2
    cached, uncached = (
        new.generate(tiny.tokens(1, 12), max_new_tokens=6, do_sample=False, use_cache=cache) for cache in (True, False)
    )
    assert torch.equal(cached, uncached)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("case", "axis"), [("gemma_untied", "all"), ("gpt_neox", "all"), ("gpt_neox", "mlp")])
def test_dtype_is_kept(case, axis, dtype):
    """The work is done in float32."""
    model = tiny.model(case, dtype=dtype)
    found, plain = (reconstructed(model, tiny.axes(case)[axis], recipe) for recipe in (BRIEF, PLAIN))
    assert {parameter.dtype for parameter in found.model.parameters()} == {dtype}
    assert found.kl < 0.95 * plain.kl


def test_frozen_parameters_stay_frozen():
    model = tiny.model("llama")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    new = reconstructed(model, tiny.axes("llama")["all"], BRIEF).model
    assert not any(parameter.requires_grad for parameter in new.parameters())


def test_settling_takes_the_place_of_the_dense_model():
    model = tiny.model("gemma").train()
    model.generation_config.max_new_tokens = 5
    found = reconstructed(model.eval(), tiny.axes("gemma")["mlp"])
    expected = tiny.logits(found.model)
    new = found.settle(model.train())
    assert (new.training, new.generation_config.max_new_tokens) == (True, 5)
    assert sum(parameter.numel() for parameter in model.parameters()) == 0, "the old model still holds tensors"
    assert torch.equal(tiny.logits(new.eval()), expected)
    assert new.get_input_embeddings().weight is new.get_output_embeddings().weight


def test_prompts_are_split():
    """One of every eight is held out, another one each time, with prompts of two lengths."""
    prompts = [torch.full((length,), place) for place, length in enumerate([5] * 12 + [7] * 6)]
    tokens = split(prompts)
    rows = {held: [] for held in (True, False)}
    for batch, held in zip(tokens.batches, tokens.held, strict=True):
        rows[held] += batch[:, 0].tolist()
    assert (rows[True], len(rows[False]), HELD) == ([0, 11], 16, 8)
    with pytest.raises(
        UsageError, match="1 calibration window: a reconstruction needs one to fit on and one to hold out"
    ):
        split(prompts[:1])


def test_steps_are_of_1024_tokens():
    tokens = split([torch.zeros(256, dtype=torch.long)] * 16)
    assert [(batch.shape[0], held) for batch, held in zip(tokens.batches, tokens.held, strict=True)] == [
        *[(4, False)] * 3, (2, False), (2, True)
    ]  # fmt: skip
