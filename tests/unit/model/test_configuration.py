"""config.json: every field by every wrong value, what contradicts what, and values that are legal all the same."""

import json
import math

import pytest

from llm_pruner.errors import PlanError, PrunerError, UsageError
from llm_pruner.model import configuration, loading
from tests.support import tiny, widths_per_layer

HUGE = 10**400
WRONG = {  # values that no field of the kind takes
    "count": (True, 0, -1, 1.5, "8", [8], {}, 10**10, HUGE, math.nan),
    "number": (True, -1, "1e-6", [1.0], {}, math.nan, math.inf, HUGE),
    "share": (True, -0.1, 1.1, "0.5", [0.5], math.nan, math.inf, HUGE),
    "truth": (0, 1, "yes", [], {}, 0.5),
    "token": (True, 1.5, "0", {}, [True], ["0"], HUGE, math.nan),
    "name": (True, 5, [], {}, "no_such_name", "x" * 10**5),
    "mapping": (5, "gptq", [1], 1.5),
    "names": ("x", 5, {}, [5], [None]),
    "rope": (5, "default", [1.0], {"rope_type": "no_such"}, {"rope_type": 5}, {"rope_theta": 0}, {"rope_theta": "x"},
             {"rope_type": "linear", "factor": -1}, {"rope_type": "linear", "factor": HUGE},
             {"rope_type": "longrope", "short_factor": []}, {"full_attention": {"rope_theta": math.nan}}),
}  # fmt: skip
KINDS = {  # model_type → field → kind
    "llama": {
        **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                         "num_key_value_heads", "head_dim", "max_position_embeddings"), "count"),
        "rms_norm_eps": "number", "rope_theta": "number", "attention_dropout": "share", "initializer_range": "share",
        **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_cache"), "truth"),
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), "token"),
        **dict.fromkeys(("hidden_act", "dtype", "torch_dtype"), "name"),
        **dict.fromkeys(("quantization_config", "auto_map", "id2label", "label2id"), "mapping"),
        **dict.fromkeys(("architectures", "layer_types"), "names"),
        **dict.fromkeys(("rope_parameters", "rope_scaling"), "rope"),
    },
    "gemma3_text": {
        "query_pre_attn_scalar": "number", "sliding_window": "count", "sliding_window_pattern": "count",
        "final_logit_softcapping": "number", "hidden_activation": "name", "layer_types": "names",
        "rope_parameters": "rope",
    },
    "gpt2": {
        **dict.fromkeys(("n_embd", "n_layer", "n_head", "n_positions", "n_inner"), "count"),
        "layer_norm_epsilon": "number", "activation_function": "name",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), "share"),
        **dict.fromkeys(("scale_attn_weights", "reorder_and_upcast_attn"), "truth"),
    },
    "gpt_neox": {
        "layer_norm_eps": "number", "rotary_pct": "share", "hidden_dropout": "share", "rotary_emb_base": "number",
        "use_parallel_residual": "truth",
    },
}  # fmt: skip
FIELDS = [(case, field, kind) for case, kinds in KINDS.items() for field, kind in kinds.items()]


def written(folder, case: str, **changes):
    """The folder of a model of the case whose config.json has other values."""
    tiny.config(case).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(folder)


def refused(folder: str, *named: str) -> PrunerError:
    """The error of loading the configuration: one line of the right kind, with the file and what is `named`."""
    with pytest.raises(PrunerError) as caught:
        loading.load_config(folder)
    text = str(caught.value)
    assert caught.value.exit_code in (2, 3), text
    assert "\n" not in text
    assert len(text) < 1000
    for word in ("config.json", *named):
        assert word in text, text
    return caught.value


@pytest.mark.parametrize(("case", "field", "kind"), FIELDS, ids=lambda part: part)
def test_a_field_with_a_wrong_value_is_named(tmp_path, case, field, kind):
    wrong = WRONG[kind]
    if field in ("rotary_pct", "query_pre_attn_scalar"):
        wrong += (0,)
    for value in wrong:
        refused(written(tmp_path, case, **{field: value}), field)


@pytest.mark.parametrize(
    ("case", "changes", "error", "words"),
    [
        ("llama", {"pad_token_id": 96}, UsageError, "pad_token_id: 96 must be within the vocabulary"),
        ("llama", {"num_attention_heads": 7, "num_key_value_heads": 7}, PlanError, "48 is not a multiple of 7"),
        ("gpt2", {"n_head": 5}, PlanError, "n_embd and n_head: 48 is not a multiple of 5"),
        ("gpt_neox", {"num_attention_heads": 5}, PlanError, "48 is not a multiple of 5"),
        ("llama", {"num_key_value_heads": 3}, PlanError, "8 num_attention_heads do not go evenly into 3"),
        ("llama", {"head_dim": 7}, UsageError, "head_dim"),
        ("qwen2", {"layer_types": ["full_attention"]}, UsageError, "layer_types is of 1 layers, num_hidden_layers is"),
        ("qwen2", {"layer_types": ["full", "half"]}, UsageError, "layer_types"),
        (
            "llama",
            {"rope_parameters": {**tiny.LLAMA3_ROPE, "high_freq_factor": 1.0}},
            UsageError,
            "low_freq_factor 1.0 must be less than its high_freq_factor 1.0",
        ),
        (
            "phi3",
            {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            UsageError,
            "short_factor",
        ),
        ("llama", {"hidden_act": "swiglu"}, UsageError, "hidden_act: 'swiglu' must be a known name; did you mean"),
        ("llama", {"num_hidden_layers": 10_000}, UsageError, "num_hidden_layers: 10000 must be a whole number from 1"),
        ("llama", {"dtype": "float8_e4m3fn"}, UsageError, "dtype: 'float8_e4m3fn' must be one of"),
        ("gemma3_text", {"sliding_window": None}, UsageError, "sliding_window: null must be a whole number"),
        ("gemma3_text", {"rope_parameters": {"a": 1}}, UsageError, "rope_parameters: 'a': 1 must be a mapping"),
        ("llama", {"is_encoder_decoder": True}, UsageError, "is_encoder_decoder: True must be false"),
        ("llama", {"to_dict": 5}, UsageError, "to_dict is no field"),
        ("llama", {"use_return_dict": True}, UsageError, "use_return_dict is no field"),
        ("llama", {"transformers_weights": 5}, UsageError, "transformers_weights: 5 must be text"),
    ],
)
def test_what_no_model_can_be_built_of(tmp_path, case, changes, error, words):
    found = refused(written(tmp_path, case, **changes), words)
    assert type(found) is error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "line 1 is not JSON"),
        (b"[]", "must be a mapping of fields to values, not list"),
        (b"null", "not NoneType"),
        (b"[" * 100_000, "nested more than"),
        (b'{"a": ' * 100 + b"1" + b"}" * 100, "nested more than 64 levels deep"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_what_is_no_configuration(tmp_path, content, words):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=words):
        loading.load_config(str(tmp_path))


def test_a_model_type_that_transformers_does_not_have(tmp_path):
    folder = written(tmp_path, "llama", model_type="lama")
    with pytest.raises(PlanError, match="no model_type 'lama'; did you mean 'llama'"):
        loading.load_config(folder, any_family=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="has no model_type"):
        loading.load_config(folder, any_family=True)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("llama", {"pad_token_id": -1}),  # LLaMA was published so; nn.Embedding counts from the end
        ("llama", {"bos_token_id": 500, "eos_token_id": [1, 500]}),
        ("llama", {"num_key_value_heads": None, "rope_scaling": None}),
        ("llama", {"torch_dtype": "float16", "dtype": None}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0.5, "rope_theta": 1}}),
        ("gpt2", {"n_inner": None, "n_ctx": 64, "task_specific_params": {"text-generation": {"do_sample": True}}}),
        ("gpt2", {"pad_token_id": 50257}),  # GPT-2's embeddings have no padding
        ("gemma", {"hidden_activation": None}),
        ("llama", {"some_field_of_tomorrow": [1, {"a": None}]}),
        ("llama", {"architectures": ["LlamaModel"]}),
    ],
)
def test_unusual_values_that_are_legal(tmp_path, case, changes):
    assert loading.load_config(written(tmp_path, case, **changes)).model_type == tiny.CASES[case][0]


@pytest.mark.parametrize("name", ["_attn_implementation", "attn_implementation"])
@pytest.mark.parametrize(
    "wanted", ["flash_attention_2", "flash_attention_3", "flex_attention", "kernels-community/flash-attn", "nonsense"]
)
def test_an_attention_implementation_that_may_be_missing_is_not_needed(tmp_path, capsys, name, wanted):
    config = loading.load_config(written(tmp_path, "llama", **{name: wanted}))
    assert config._attn_implementation == "sdpa"
    assert f"asks for the attention implementation '{wanted}'" in capsys.readouterr().out
    assert loading.load_config(written(tmp_path, "llama", **{name: "eager"}))._attn_implementation == "eager"


def test_what_would_change_what_a_model_returns_is_not_taken_over(tmp_path):
    """`return_dict` false gives tuples, and a model with `output_attentions` cannot be saved."""
    config = loading.load_config(written(tmp_path, "llama", return_dict=False, output_attentions=True))
    assert (config.return_dict, config.output_attentions) == (True, False)


HEADS = (
    "LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaForQuestionAnswering", "LlamaForScore",
    "LlamaForRewardModel", "GPT2DoubleHeadsModel", "AutoModelForCausalLMWithValueHead", "BertForMaskedLM",
    "BertForMultipleChoice",
)  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("any_family", [False, True])
def test_models_with_another_head_are_refused(tmp_path, name, any_family):
    with pytest.raises(PlanError, match=f"architectures: '{name}' has another head"):
        loading.load_config(written(tmp_path, "llama", architectures=[name]), any_family=any_family)


@pytest.mark.parametrize(
    ("skip", "legal"),
    [(["norm"], "one of attention, mlp"), ("attention", "a list"), ([0], "one of attention, mlp")],
)
def test_parts_that_no_layer_can_lack(tmp_path, skip, legal):
    widths_per_layer.skipping("llama").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    raw = configuration.read(path)
    assert raw["per_layer_widths"][0] == {"skip": ["attention"]}
    raw["per_layer_widths"][1]["skip"] = skip
    path.write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=f"per_layer_widths: .* a mapping whose skip is .*{legal}"):
        configuration.read(path)
