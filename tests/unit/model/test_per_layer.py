import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from llm_pruner.errors import PlanError
from llm_pruner.model import per_layer
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.model.families import family_of, resize, widths_of
from llm_pruner.model.per_layer import per_layer_config
from tests import REPOSITORY
from tests.support import tiny
from tests.support.reload_per_layer import TOKENS, outputs

SCRIPT = REPOSITORY / "tests" / "support" / "reload_per_layer.py"
BIASED = ("self_attn.o_proj", "mlp.down_proj")
BIASES = {"gpt2": ("attn.c_proj", "mlp.c_proj"), "gpt_neox": ("attention.dense",)}


def stock(case: str):
    """The case with three layers; gpt_neox without the biases that it can do without."""
    changes = {
        "gemma3_text": {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
        "gpt_neox": {"attention_bias": False},
    }
    return tiny.config(case, num_hidden_layers=3, **changes.get(case, {}))


def config(case: str):
    """Another number of heads, another ratio of queries to keys and another MLP in each layer."""
    base = stock(case)
    mlp = MLP.field_of(family_of(base.model_type))
    layers = [{mlp: 44}, {mlp: 100}, {}]
    if case not in tiny.DERIVED:
        layers[0] |= {"num_attention_heads": 6, "num_key_value_heads": 2}
        layers[1] |= {"num_attention_heads": 3, "num_key_value_heads": 3}
    return per_layer_config(base, layers, BIASES.get(case, BIASED))


@torch.no_grad()
def randomised(model):
    for name, parameter in model.named_parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
        if parameter.dim() == 1 and not name.endswith("bias"):
            parameter += 1
    return model.eval()


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {case: randomised(AutoModelForCausalLM.from_config(config(case))) for case in tiny.CASES}


@pytest.fixture(scope="module")
def reloaded(models, tmp_path_factory):
    """{mode: {case: results}} of every model saved here and loaded in a fresh process in every mode, and "here"."""
    folder = tmp_path_factory.mktemp("per_layer")
    results = {"here": {case: outputs(copy.deepcopy(model)) for case, model in models.items()}}
    for case, model in models.items():
        model.save_pretrained(folder / "saved" / case)
        AutoModelForCausalLM.from_pretrained(folder / "saved" / case).save_pretrained(folder / "from_registered" / case)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    for mode in ("remote", "registered", "late"):
        done = subprocess.run(
            [sys.executable, "-I", SCRIPT, mode, folder],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results[mode] = torch.load(folder / f"{mode}.pt")
    results["folder"] = folder
    return results


@torch.no_grad()
def in_bfloat16(model) -> torch.Tensor:
    model = copy.deepcopy(model)
    for parameter in model.parameters():  # not .to, which would round the rotary frequencies too
        parameter.data = parameter.data.bfloat16()
    return model(TOKENS).logits


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["remote", "registered"])
@pytest.mark.parametrize("case", tiny.CASES)
def test_reload_in_a_fresh_process_gives_the_same(models, reloaded, case, mode):
    here, there = reloaded["here"][case], reloaded[mode][case]
    assert there["problems"] == {}
    assert there["class"].startswith({"remote": "transformers_modules.", "registered": "llm_pruner."}[mode])
    for name, expected in here.items():
        torch.testing.assert_close(there[name], expected, atol=1e-6, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    for name in ("auto", "cpu", "again"):
        torch.testing.assert_close(there[name], here["logits"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(there["loaded_eager"], here["eager"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(there["bf16"], in_bfloat16(models[case]))


@pytest.mark.parametrize("case", tiny.CASES)
def test_every_way_of_running_agrees(reloaded, case):
    here = reloaded["here"][case]
    for name in ("no_cache", "static", "eager_cache"):
        assert torch.equal(here[name], here["cache"]), name
    assert torch.equal(here["padded_cache"], here["padded_no_cache"])
    for name in ("deepcopy", "eager"):
        torch.testing.assert_close(here[name], here["logits"], atol=1e-4, rtol=1e-4)
    assert here["heads"].tolist() == ([6, 6, 6] if case in tiny.DERIVED else [6, 3, 8])


def test_without_permission_it_is_refused_and_says_so(reloaded):
    assert "trust_remote_code=True" in reloaded["late"]["error"]
    assert "custom code" in reloaded["late"]["error"]


def test_registered_when_transformers_was_imported_first(reloaded):
    here = reloaded["here"]["llama"]["logits"]
    torch.testing.assert_close(reloaded["late"]["logits"], here, atol=1e-6, rtol=1e-6)


def test_the_stock_class_refuses_the_checkpoint(reloaded):
    with pytest.raises(RuntimeError, match="ize mismatch|mismatched"):
        LlamaForCausalLM.from_pretrained(reloaded["folder"] / "saved" / "llama")


@pytest.mark.parametrize("saved", ["saved", "from_registered", "from_remote"])
def test_the_folder_carries_the_modelling_file_once(reloaded, saved):
    original = Path(per_layer.__file__).with_name("modeling_pruned.py")
    for case in tiny.CASES:
        folder = reloaded["folder"] / saved / case
        assert {path.name: path.read_bytes() for path in folder.glob("*.py")} == {original.name: original.read_bytes()}
        read = AutoConfig.from_pretrained(folder)
        assert read.architectures == [read.auto_map["AutoModelForCausalLM"].removeprefix("modeling_pruned.")]


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
def test_builds_without_memory(models, case):
    from accelerate import init_empty_weights

    shapes = {name: tensor.shape for name, tensor in models[case].state_dict().items()}
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


def test_a_layer_reads_its_own_widths_and_all_else_from_the_config(models):
    model = copy.deepcopy(models["llama"])
    layer = model.model.layers[0].self_attn.config
    assert (layer.num_attention_heads, layer.hidden_size, model.config.num_attention_heads) == (6, 48, 8)
    model.config.attention_dropout = 0.25
    assert layer.attention_dropout == 0.25
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = layer.no_such_field


@pytest.mark.parametrize(
    ("case", "layers", "message"),
    [
        ("llama", [{}], "widths of 1 layers for a model that has 2"),
        ("llama", [{}, {"hidden_size": 40}], "layer 1: 'hidden_size' cannot differ between layers, only num_attention"),
        ("llama", [{"intermediate_size": 0}, {}], "layer 0: intermediate_size must be a whole number of at least 1"),
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


def test_registering_again_changes_nothing(models):
    finders = list(sys.meta_path)
    per_layer.register()
    assert sys.meta_path == finders
    assert type(AutoConfig.for_model("pruned_llama")) is type(models["llama"].config)
    assert type(AutoModelForCausalLM.from_config(config("llama"))) is type(models["llama"])


def test_import_is_light():
    code = "import sys, llm_pruner; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
