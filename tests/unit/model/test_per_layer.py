import sys

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from llm_pruner.errors import PlanError
from llm_pruner.model import per_layer
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.model.families import family_of, resize, widths_of
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.per_layer import per_layer_config
from tests.support import tiny
from tests.support.reload_per_layer import outputs
from tests.support.widths_per_layer import BIASED, BIASES, config, model, randomised, skipping, stock


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
def test_every_way_of_running_agrees(case):
    here = outputs(model(case))
    for name in ("no_cache", "static", "eager_cache"):
        assert torch.equal(here[name], here["cache"]), name
    assert torch.equal(here["padded_cache"], here["padded_no_cache"])
    for name in ("deepcopy", "eager"):
        torch.testing.assert_close(here[name], here["logits"], atol=1e-4, rtol=1e-4)
    assert here["heads"].tolist() == ([6, 6, 6] if case in tiny.DERIVED else [6, 3, 8])


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
def test_every_way_of_running_agrees_without_attention_in_the_first_layer(case):
    """From whose cache transformers reads how many tokens there have been."""
    here = outputs(model(case, skipping))
    for name in ("no_cache", "static", "eager_cache"):
        assert torch.equal(here[name], here["cache"]), name
    assert torch.equal(here["padded_cache"], here["padded_no_cache"])
    for name in ("deepcopy", "eager"):
        torch.testing.assert_close(here[name], here["logits"], atol=1e-4, rtol=1e-4)
    assert len(here["heads"]) == 1


def silent(_, __, output):
    return (torch.zeros_like(output[0]), None) if isinstance(output, tuple) else torch.zeros_like(output)


@pytest.mark.parametrize("case", tiny.CASES)
def test_a_layer_without_a_part_is_one_whose_part_gives_nothing(case):
    """It owns none of the part's parameters, and keeps the norms."""
    small = model(case, skipping)
    assert [own["skip"] for own in small.config.per_layer_widths] == [["attention"], ["mlp"], ["attention", "mlp"]]
    wide = randomised(
        AutoModelForCausalLM.from_config(per_layer_config(stock(case), [{}] * 3, BIASES.get(case, BIASED)))
    )
    own = small.state_dict()
    assert wide.load_state_dict(own, strict=False).unexpected_keys == []
    layers = [decoder_layers(built) for built in (small, wide)]
    attention = {"gpt2": "attn", "gpt_neox": "attention"}.get(case, "self_attn")
    for layer, parts in enumerate(((attention,), ("mlp",), (attention, "mlp"))):
        for part in parts:
            assert not list(layers[0][layer].get_submodule(part).parameters())
            layers[1][layer].get_submodule(part).register_forward_hook(silent)
        assert [name for name, _ in layers[0][layer].named_parameters() if "norm" in name or "ln_" in name]
    assert torch.allclose(tiny.logits(small), tiny.logits(wide), atol=1e-5)


def test_a_cache_is_told_of_tokens_by_a_layer_without_attention():
    built = model("llama", skipping)
    cache = built(tiny.tokens(), use_cache=True).past_key_values
    assert [cache.get_seq_length(layer) for layer in range(3)] == [12, 12, 12]
    assert cache.layers[0].keys.shape == (2, 1, 12, 1)


@pytest.mark.parametrize("case", tiny.CASES)
def test_uniform_overrides_are_the_stock_model_of_those_widths(case):
    base = tiny.config(case)
    family, widths = family_of(base.model_type), widths_of(base)
    fewer = {MLP: 40} if case in tiny.DERIVED else {MLP: 40, HEADS: 6, KV_HEADS: 3}
    expected = randomised(AutoModelForCausalLM.from_config(resize(base, widths.but(fewer))))
    smaller = {axis.field: width for axis, width in fewer.items() if axis != MLP} | {MLP.field_of(family): 40}
    built = AutoModelForCausalLM.from_config(per_layer_config(base, [smaller] * base.num_hidden_layers)).eval()
    built.load_state_dict(expected.state_dict())
    assert torch.equal(tiny.logits(built), tiny.logits(expected))


@pytest.mark.parametrize("case", tiny.CASES)
def test_builds_without_memory(case):
    from accelerate import init_empty_weights

    shapes = {name: tensor.shape for name, tensor in model(case).state_dict().items()}
    for context in (torch.device("meta"), init_empty_weights(include_buffers=False)):
        with context:
            empty = AutoModelForCausalLM.from_config(config(case))
        assert {name: tensor.shape for name, tensor in empty.state_dict().items()} == shapes
        assert all(parameter.is_meta for parameter in empty.parameters())


def test_new_parameters_start_as_those_of_a_stock_model():
    built = AutoModelForCausalLM.from_config(config("llama"))
    biases = {name: tensor for name, tensor in built.named_parameters() if name.endswith("bias")}
    assert sorted(biases) == sorted(f"model.layers.{i}.{name}.bias" for i in range(3) for name in BIASED)
    assert not any(tensor.any() for tensor in biases.values())
    for layer in built.model.layers:
        torch.testing.assert_close(layer.mlp.up_proj.weight.std().item(), 0.02, atol=0.002, rtol=0)


def test_config_keeps_what_it_is_not_told_to_change():
    base = tiny.config("gemma3_text", dtype="bfloat16", attn_implementation="eager", eos_token_id=[1, 2])
    made = per_layer_config(base, [{}, {"intermediate_size": 40, "num_attention_heads": 8}])
    assert made.per_layer_widths == [{}, {"intermediate_size": 40}]  # eight heads are the config's own
    assert made.model_type == "pruned_gemma3_text"
    assert made.dtype == torch.bfloat16
    assert made._attn_implementation == "eager"
    own = {"model_type", "per_layer_widths", "projection_biases", "architectures", "auto_map"}
    assert {k: v for k, v in made.to_dict().items() if k not in own} == {
        k: v for k, v in base.to_dict().items() if k not in own
    }


def test_a_layer_reads_its_own_widths_and_all_else_from_the_config():
    built = model("llama")
    layer = built.model.layers[0].self_attn.config
    assert (layer.num_attention_heads, layer.hidden_size, built.config.num_attention_heads) == (6, 48, 8)
    built.config.attention_dropout = 0.25
    assert layer.attention_dropout == 0.25
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = layer.no_such_field


@pytest.mark.parametrize(
    ("case", "layers", "message"),
    [
        ("llama", [{}], "widths of 1 layers for a model that has 2"),
        ("llama", [{}, {"hidden_size": 40}], "layer 1: 'hidden_size' cannot differ between layers, only num_attention"),
        ("llama", [{"intermediate_size": -1}, {}], "layer 0: intermediate_size must be a whole number of at least 0"),
        ("llama", [{"num_key_value_heads": 0}, {}], r"layer 0: query heads and kv heads go together \(8 heads, 0 kv"),
        ("llama", [{"intermediate_size": 40.0}, {}], r"not 40\.0"),
        ("llama", [{"num_attention_heads": 6}, {}], r"layer 0: every kv group .* \(6 heads, 4 kv heads\)"),
        ("gpt2", [{}, {"num_attention_heads": 3}], "layer 1: gpt2 derives head_dim .* n_inner can differ"),
        ("gpt_neox", [{}, {"num_attention_heads": 3}], "gpt_neox derives head_dim .* intermediate_size can differ"),
    ],
)
def test_widths_that_no_layer_can_have(case, layers, message):
    with pytest.raises(PlanError, match=message):
        per_layer_config(tiny.config(case), layers)


def test_unsupported_family():
    with pytest.raises(PlanError, match="model_type 'opt' is not supported"):
        per_layer_config(AutoConfig.for_model("opt", num_hidden_layers=1), [{}])


def test_registering_again_changes_nothing():
    before = model("llama")
    finders = list(sys.meta_path)
    per_layer.register()
    assert sys.meta_path == finders
    assert type(AutoConfig.for_model("pruned_llama")) is type(before.config)
    assert type(AutoModelForCausalLM.from_config(config("llama"))) is type(before)
