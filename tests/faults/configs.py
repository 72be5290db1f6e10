"""Every field of config.json of several families × wrong type, out of range, huge, null, missing; and the file."""

import json
import math
from collections.abc import Iterator
from typing import Any

from tests.faults.changes import MISSING, POINTER, Change, directory, edited, fields, link, pipe, remove, sparse, text
from tests.faults.contract import Fault

DRY = "prune --model model --pruning_ratio 0.5 --importance magnitude --dry_run"
FILE = "model/config.json"
REFUSED, SHAPE, EITHER, ANY = (2,), (2, 3), (0, 2), (0, 1, 2, 3)
HUGE = 10**15
LONG = "x" * 1_000_000

Values = list[tuple[str, Any, tuple[int, ...]]]
NO_NUMBER: Values = [("text", "many", REFUSED), ("a list", [4], REFUSED), ("a mapping", {"a": 4}, REFUSED)]
ABSENT: Values = [("null", None, (0, 2, 3)), ("missing", MISSING, (0, 2, 3))]
WIDTH: Values = [
    *NO_NUMBER, ("true", True, REFUSED), ("a fraction", 1.5, REFUSED), ("NaN", math.nan, REFUSED), ("-1", -1, SHAPE),
    ("0", 0, SHAPE), ("huge", HUGE, ANY), ("beyond any integer", 10**40, SHAPE), ("a megabyte of text", LONG, REFUSED),
    *ABSENT,
]  # fmt: skip
COUNT: Values = [*NO_NUMBER, ("a fraction", 2.5, REFUSED), ("-1", -1, SHAPE), ("0", 0, SHAPE), ("null", None, SHAPE)]
FEW: Values = [("text", "many", REFUSED), ("0", 0, SHAPE), ("huge", HUGE, ANY)]
MAYBE: Values = [("text", "many", REFUSED), ("-1", -1, SHAPE), ("a fraction", 4.5, REFUSED)]
NORM: Values = [
    *NO_NUMBER, ("NaN", math.nan, REFUSED), ("infinity", math.inf, REFUSED), ("-1", -1.0, REFUSED),
    ("null", None, REFUSED),
]  # fmt: skip
SHARE: Values = [("text", "some", EITHER), ("NaN", math.nan, EITHER), ("-1", -1.0, EITHER), ("a list", [0.1], EITHER)]
TRUTH: Values = [("text", "yes", REFUSED), ("7", 7, REFUSED), ("a list", [True], REFUSED), ("null", None, EITHER)]
SWITCH: Values = [("text", "yes", EITHER), ("7", 7, EITHER)]
NAME: Values = [
    ("unknown", "foo", REFUSED), ("swiglu", "swiglu", REFUSED), ("7", 7, REFUSED), ("a list", ["silu"], REFUSED),
    ("null", None, REFUSED), ("a megabyte", LONG, REFUSED), ("empty", "", REFUSED),
]  # fmt: skip
TOKEN: Values = [
    ("text", "eos", REFUSED), ("a fraction", 0.5, REFUSED), ("-5", -5, EITHER), ("a mapping", {"a": 1}, REFUSED),
    ("a list of text", ["a"], REFUSED),
]  # fmt: skip
ROPE: Values = [
    ("text", "linear", REFUSED), ("7", 7, REFUSED), ("a list", [], EITHER),
    ("unknown type", {"rope_type": "foo"}, REFUSED),
    ("type 7", {"rope_type": 7, "rope_theta": 1e4}, REFUSED),
    ("yarn without factor", {"rope_type": "yarn", "rope_theta": 1e4}, EITHER),
    ("factor text", {"rope_type": "linear", "rope_theta": 1e4, "factor": "two"}, REFUSED),
    ("factor NaN", {"rope_type": "linear", "rope_theta": 1e4, "factor": math.nan}, REFUSED),
    ("factor 0", {"rope_type": "linear", "rope_theta": 1e4, "factor": 0}, EITHER),
    ("theta text", {"rope_type": "default", "rope_theta": "big"}, REFUSED),
    ("theta NaN", {"rope_type": "default", "rope_theta": math.nan}, REFUSED),
    ("theta 0", {"rope_type": "default", "rope_theta": 0}, REFUSED),
    ("theta -1", {"rope_type": "default", "rope_theta": -1}, REFUSED),
    ("longrope without factors", {"rope_type": "longrope", "rope_theta": 1e4}, EITHER),
    ("longrope with text", {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": "a", "long_factor": "b"},
        REFUSED),
    ("llama3 without the rest", {"rope_type": "llama3", "rope_theta": 1e4}, EITHER),
]  # fmt: skip
DTYPE: Values = [("unknown", "float99", REFUSED), ("7", 7, REFUSED), ("int8", "int8", REFUSED),
    ("a list", ["float32"], REFUSED),
                 ("fp8", "float8_e4m3fn", REFUSED), ("complex", "complex64", REFUSED),
                 ("an attribute", "nn", REFUSED)]  # fmt: skip
KIND: Values = [
    ("7", 7, SHAPE), ("a list", ["llama"], SHAPE), ("null", None, SHAPE), ("unknown", "bloom", SHAPE),
    ("a path", "../x", SHAPE),
    ("missing", MISSING, SHAPE), ("a megabyte", LONG, SHAPE), ("a mapping", {}, SHAPE), ("other case", "LLaMA", SHAPE),
]  # fmt: skip
LLAMA: dict[str, Values] = {
    "hidden_size": WIDTH, "num_key_value_heads": WIDTH, "num_hidden_layers": WIDTH, "vocab_size": COUNT,
    "intermediate_size": [*COUNT, ("huge", HUGE, ANY)], "num_attention_heads": [*FEW, ("NaN", math.nan, REFUSED)],
    "head_dim": [*MAYBE, ("true", True, REFUSED), *ABSENT],
    "max_position_embeddings": FEW, "rms_norm_eps": NORM, "hidden_act": NAME, "tie_word_embeddings": TRUTH,
    "attention_bias": TRUTH, "mlp_bias": TRUTH, "attention_dropout": SHARE, "initializer_range": SHARE,
    "use_cache": SWITCH,
    "pad_token_id": [*TOKEN, ("beyond the vocabulary", 10**6, REFUSED)],
    "bos_token_id": [*TOKEN, ("beyond the vocabulary", 10**6, EITHER)],
    "eos_token_id": [*TOKEN, ("beyond the vocabulary", 10**6, EITHER)],
    "rope_parameters": ROPE, "dtype": DTYPE, "torch_dtype": DTYPE[:2], "model_type": KIND,
    "rope_theta": [("text", "big", EITHER), ("NaN", math.nan, EITHER)],
    "quantization_config": [
        ("text", "gptq", SHAPE), ("7", 7, SHAPE), ("a list", ["gptq"], SHAPE), ("no method", {"bits": 4}, SHAPE),
        ("gptq", {"quant_method": "gptq"}, SHAPE), ("method 7", {"quant_method": 7}, SHAPE),
        ("unknown method", {"quant_method": "foo"}, SHAPE), ("empty", {}, (0, 2, 3)),
        ("ours, broken", {"quant_method": "llm_pruner_sparse", "x": 1}, SHAPE),
    ],
    "architectures": [
        ("text", "LlamaForCausalLM", EITHER), ("7", 7, EITHER), ("numbers", [7], EITHER),
        ("a classifier", ["LlamaForSequenceClassification"], (3,)),
    ],
    "_attn_implementation": [("flash attention", "flash_attention_2", (0,)), ("7", 7, EITHER)],
    "attn_implementation": [("flash attention", "flash_attention_2", (0,)), ("unknown", "foo", EITHER)],
    "layer_types": [("text", "full", EITHER), ("unknown", ["foo", "bar"], EITHER)],
    "id2label": [("text", "x", EITHER), ("a list", ["a", "b"], EITHER)], "num_labels": [("text", "x", EITHER)],
    "pretraining_tp": [("text", "x", EITHER), ("0", 0, EITHER)], "transformers_version": [("7", 7, EITHER)],
    "auto_map": [("text", "x", EITHER), ("code", {"AutoConfig": "evil.Config"}, (0,))],
    "is_decoder": [("text", "x", EITHER)], "output_hidden_states": [("true", True, (0,)), ("text", "x", EITHER)],
    "return_dict": [("false", False, EITHER)], "per_layer_config": [("text", "x", EITHER)],
    "text_config": [("text", "x", EITHER), ("a mapping", {"hidden_size": 3}, EITHER)],
}  # fmt: skip
OTHERS: dict[str, dict[str, Values]] = {
    "gpt2": {
        "n_embd": FEW, "n_head": COUNT, "n_layer": FEW, "n_positions": FEW, "n_inner": MAYBE, "vocab_size": FEW,
        "layer_norm_epsilon": NORM[3:], "activation_function": NAME[:3], "resid_pdrop": SHARE[:2],
        "scale_attn_weights": SWITCH,
    },
    "gemma3_text": {
        "hidden_size": FEW, "num_attention_heads": FEW, "num_key_value_heads": FEW, "head_dim": MAYBE,
        "rms_norm_eps": NORM[3:],
        "hidden_activation": NAME[:3],
        "query_pre_attn_scalar": [("text", "x", REFUSED), ("0", 0, REFUSED), ("NaN", math.nan, REFUSED)],
        "sliding_window": MAYBE,
        "layer_types": [
            ("text", "full", REFUSED), ("too few", ["full_attention"], REFUSED), ("unknown", ["foo", "bar"], REFUSED),
            ("numbers", [1, 2], REFUSED), ("null", None, EITHER),
        ],
        "final_logit_softcapping": [("text", "a", REFUSED), ("NaN", math.nan, REFUSED), ("0", 0.0, EITHER)],
        "rope_parameters": [
            ("text", "x", REFUSED), ("a type missing", {"full_attention": {"rope_type": "default"}}, EITHER),
        ],
    },
    "phi3": {
        "hidden_size": FEW, "intermediate_size": FEW, "num_key_value_heads": FEW, "sliding_window": MAYBE,
        "original_max_position_embeddings": [("text", "x", EITHER), ("0", 0, EITHER)], "rope_parameters": ROPE[:5],
        "resid_pdrop": SHARE[:2], "hidden_act": NAME[:3],
    },
    "qwen3": {
        "hidden_size": FEW, "num_attention_heads": FEW, "num_key_value_heads": FEW, "head_dim": MAYBE,
        "rms_norm_eps": NORM[3:],
        "use_sliding_window": SWITCH, "max_window_layers": [("text", "x", EITHER), ("-1", -1, EITHER)],
        "layer_types": [("too few", ["full_attention"], REFUSED), ("unknown", ["foo", "bar"], REFUSED)],
    },
    "gpt_neox": {
        "hidden_size": FEW, "num_attention_heads": FEW, "intermediate_size": FEW, "layer_norm_eps": NORM[3:],
        "hidden_act": NAME[:3],
        "use_parallel_residual": SWITCH, "attention_bias": TRUTH[:2],
        "rope_parameters": [
            ("partial text", {"rope_theta": 1e4, "partial_rotary_factor": "x", "rope_type": "default"}, REFUSED),
            ("partial 3", {"rope_theta": 1e4, "partial_rotary_factor": 3.0, "rope_type": "default"}, EITHER),
            ("partial 0", {"rope_theta": 1e4, "partial_rotary_factor": 0.0, "rope_type": "default"}, EITHER),
        ],
    },
}  # fmt: skip
TOGETHER: list[tuple[str, dict, tuple[int, ...]]] = [
    ("heads that do not divide by kv heads", {"num_key_value_heads": 3}, (3,)),
    ("more kv heads than heads", {"num_key_value_heads": 16}, (3,)),
    ("hidden_size that heads do not divide", {"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": MISSING},
        (2, 3)),
    ("an odd head_dim", {"head_dim": 7}, ANY),
    ("ten thousand layers", {"num_hidden_layers": 10_000}, ANY),
    ("a million layers", {"num_hidden_layers": 10**6}, (1, 2, 3)),
]  # fmt: skip
WHOLE: list[tuple[str, Change, tuple[int, ...]]] = [
    ("empty", text(FILE, ""), (1, 2)),
    ("a list", text(FILE, "[]"), (1, 2)),
    ("a number", text(FILE, "7"), (1, 2)),
    ("null", text(FILE, "null"), (1, 2)),
    ("an empty mapping", text(FILE, "{}"), (1, 2, 3)),
    ("binary", text(FILE, bytes(range(256))), (1, 2)),
    ("cut off", edited(FILE, lambda found: found), (0,)),
    ("a comma too many", text(FILE, '{"model_type": "llama",}'), (1, 2)),
    ("nested a hundred thousand deep", text(FILE, "[" * 100_000 + "]" * 100_000), (1, 2)),
    ("a field nested deep", text(FILE, '{"model_type": "llama", "x": ' + "[" * 5000 + "]" * 5000 + "}"), (1, 2)),
    (
        "a number of ten thousand digits",
        text(FILE, '{"model_type": "llama", "hidden_size": ' + "9" * 10_000 + "}"),
        (1, 2, 3),
    ),
    ("UTF-16", text(FILE, '{"model_type": "llama"}'.encode("utf-16")), (1, 2)),
    ("70 MB of zeros", sparse(FILE, 70 * 2**20), (1, 2)),
    ("a pointer of Git LFS", text(FILE, POINTER), (1, 2)),
    ("a pipe", pipe(FILE), (1, 2)),
    ("a folder", directory(FILE), (1, 2)),
    ("a device without end", link(FILE, "/dev/zero"), (1, 2)),
    ("a link to itself", link(FILE, "config.json"), (1, 2)),
    ("missing", remove(FILE), (1, 2)),
]


def _with_mark(folder) -> None:
    path = folder / FILE
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def _cut(folder) -> None:
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:200])


def faults() -> Iterator[Fault]:
    for family, table in {"llama": LLAMA, **OTHERS}.items():
        for field, values in table.items():
            for label, value, codes in values:
                named = "rope" if field == "rope_parameters" else field
                words = ("config.json", named) if 2 in codes and value is not MISSING else ()
                yield Fault(
                    "config.json fields", f"{family} {field} {label}", DRY, fields(FILE, **{field: value}), codes,
                    _said(words, field, codes), (family,), limits={"AS": 8 * 2**30},
                )  # fmt: skip
    for name, values, codes in TOGETHER:
        yield Fault("config.json fields", name, DRY, fields(FILE, **values), codes)
    for name, change, codes in WHOLE:
        if name == "cut off":
            change, codes = _cut, (1, 2)
        yield Fault("config.json as a file", name, DRY, change, codes, ("config.json",) if codes != (0,) else ())
    yield Fault("config.json as a file", "a byte order mark", DRY, _with_mark, (2,), ("config.json",))
    yield Fault("config.json as a file", "other line ends", DRY, _with_crlf, (0,))
    yield from _other_commands()


def _said(words: tuple[str, ...], field: str, codes: tuple[int, ...]) -> tuple[str, ...]:
    """The field is named by the refusal of a value; a shape that follows from it may be named instead."""
    if 3 in codes:
        return ()
    return words


def _with_crlf(folder) -> None:
    path = folder / FILE
    path.write_bytes(json.dumps(json.loads(path.read_bytes()), indent=1).replace("\n", "\r\n").encode())


COMMANDS = {
    "evaluate": "evaluate --model model --eval_data text.txt --max_seq_len 16",
    "recover": "recover --model model --teacher model --data text.txt --steps 1 --save_model out",
    "a teacher": "recover --model pruned --teacher model --data text.txt --steps 1 --save_model out",
    "sparsify": "sparsify --model model --n 2 --m 4 --eval_data text.txt --max_seq_len 16 --save_model out",
    "the best method": "prune --model model --param_ratio 0.3 --calibration_data text.txt --eval_data none "
    "--save_model out",
    "pipeline": "pipeline --config pipeline.yaml --model model --folder run",
}
SAMPLE: list[tuple[str, Change]] = [
    ("hidden_act unknown", fields(FILE, hidden_act="foo")),
    ("num_key_value_heads 0", fields(FILE, num_key_value_heads=0)),
    ("hidden_size text", fields(FILE, hidden_size="many")),
    ("rope type unknown", fields(FILE, rope_parameters={"rope_type": "foo"})),
    ("quantization_config text", fields(FILE, quantization_config="gptq")),
    ("deep", text(FILE, "[" * 100_000 + "]" * 100_000)),
    ("a pipe", pipe(FILE)),
]


def _other_commands() -> Iterator[Fault]:
    for what, command in COMMANDS.items():
        needs = ("llama", "text", "pipeline.yaml", *["pruned"] * (what == "a teacher"))
        for name, change in SAMPLE:
            yield Fault(
                "config.json in every command", f"{what}: {name}", command, change, (1, 2, 3), ("config.json",), needs,
                writes=("run",) if what == "pipeline" else (),
            )  # fmt: skip
