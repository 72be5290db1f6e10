"""Every tensor of a small model × missing, other shape, other dtype, NaN, Inf; weight files that are something else;
shard indices."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.changes import (
    POINTER,
    Change,
    cut,
    directory,
    fields,
    floats,
    link,
    numbers,
    pipe,
    remove,
    sparse,
    tensors,
    text,
    together,
)  # fmt: skip
from tests.faults.contract import Fault

SAVE = "prune --model model --pruning_ratio 0.5 --importance magnitude --eval_data none --save_model out"
FILE, INDEX = "model/model.safetensors", "model/model.safetensors.index.json"
LAYER = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
)  # fmt: skip
NAMES = [
    "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
    *[f"model.layers.{number}.{name}.weight" for number in range(2) for name in LAYER],
]  # fmt: skip
OTHERS = {
    "gpt2": ["transformer.wpe.weight", "transformer.h.0.attn.c_attn.weight", "transformer.h.1.mlp.c_proj.bias"],
    "phi3": ["model.layers.0.self_attn.qkv_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"],
    "gpt_neox": ["gpt_neox.layers.0.attention.query_key_value.weight", "gpt_neox.layers.1.mlp.dense_4h_to_h.bias"],
    "qwen3": ["model.layers.0.self_attn.q_norm.weight"],
    "gemma3_text": ["model.layers.1.pre_feedforward_layernorm.weight"],
}


def _size(shape: list[int]) -> int:
    return math.prod(shape)


def _other_shape(tensor: list) -> list:
    dtype, shape, blob = tensor
    return [dtype, [shape[0] - 1, *shape[1:]], blob[: len(blob) // shape[0] * (shape[0] - 1)]]


def _with(value: float) -> Callable[[list], list]:
    def change(tensor: list) -> list:
        dtype, shape, blob = tensor
        values = numbers(blob)
        values[len(values) // 3] = value
        return [dtype, shape, floats(values)]

    return change


def _as(dtype: str, size: int) -> Callable[[list], list]:
    return lambda tensor: [dtype, tensor[1], bytes(size * _size(tensor[1]))]


DAMAGES: dict[str, tuple[Callable[[list], list] | None, tuple[int, ...]]] = {
    "missing": (None, (1,)),
    "other shape": (_other_shape, (1,)),
    "NaN": (_with(math.nan), (1,)),
    "infinity": (_with(math.inf), (1,)),
    "int8": (_as("I8", 1), (1, 2, 3)),
    "fp8": (_as("F8_E4M3", 1), (1, 2, 3)),
    "bool": (_as("BOOL", 1), (1, 2, 3)),
    "complex": (_as("C64", 8), (1, 2, 3)),
}

SHAPES, DTYPES = ("missing", "other shape", "NaN", "infinity"), ("int8", "fp8", "bool", "complex")


def _damaged(name: str, damage: Callable[[list], list] | None) -> Change:
    def change(found: dict) -> None:
        if damage is None:
            del found[name]
        else:
            found[name] = damage(found[name])

    return tensors(change)


def _index(value, *more: Change) -> Change:
    return together(text(INDEX, value if isinstance(value, str | bytes) else json.dumps(value)), *more)


def _sharded(folder: Path) -> None:
    """The weights in two files with their index."""
    whole = (folder / FILE).read_bytes()
    for number in (1, 2):
        part = f"model/model-0000{number}-of-00002.safetensors"
        (folder / part).write_bytes(whole)
        tensors(lambda found, n=number: {k: v for i, (k, v) in enumerate(found.items()) if i % 2 == n - 1}, part)(
            folder
        )
    (folder / FILE).unlink()
    size = int.from_bytes(whole[:8], "little")
    names = [name for name in json.loads(whole[8 : 8 + size]) if name != "__metadata__"]
    first = json.loads((folder / "model/model-00001-of-00002.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
    where = {name: f"model-0000{1 if name in first else 2}-of-00002.safetensors" for name in names}
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))


def _map(change: Callable[[dict], object]) -> Change:
    """Sharded, with a change to the index's weight_map."""

    def changed(folder: Path) -> None:
        _sharded(folder)
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"] = change(index["weight_map"]) or index["weight_map"]
        (folder / INDEX).write_text(json.dumps(index))

    return changed


def _outside(folder: Path) -> None:
    """What the map of a .bin index points to lies outside; a safetensors file that nobody asked for lies beside it."""
    outside = folder / "outside.safetensors"
    (folder / FILE).rename(outside)
    (folder / "model/model-x.safetensors").write_bytes(outside.read_bytes())
    names = list(NAMES)
    text(
        "model/pytorch_model.bin.index.json",
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "../x.bin")}),
    )(folder)
    (folder / "x.bin").write_bytes(b"of somebody else")


PART = "model/model-00001-of-00002.safetensors"
FILES: list[tuple[str, Change, tuple[int, ...], tuple[str, ...]]] = [
    ("cut in half", cut(FILE), (1,), ("model.safetensors",)),
    ("without its last byte", cut(FILE, 0.99999), (1,), ("model.safetensors",)),
    ("cut inside its header", cut(FILE, 0.001), (1,), ("model.safetensors",)),
    ("empty", text(FILE, ""), (1,), ("model.safetensors",)),
    ("text", text(FILE, "not weights at all"), (1,), ("model.safetensors",)),
    ("a header of 2^62 bytes", text(FILE, (2**62).to_bytes(8, "little") + b"{}"), (1,), ("model.safetensors",)),
    ("zeros", sparse(FILE, 10**6), (1,), ("model.safetensors",)),
    ("a pointer of Git LFS", text(FILE, POINTER), (1,), ("LFS",)),
    ("a pipe", pipe(FILE), (1, 2), ("model.safetensors",)),
    ("a folder", directory(FILE), (1, 2), ("model.safetensors",)),
    ("a device", link(FILE, "/dev/zero"), (1, 2), ("model.safetensors",)),
    ("a link to nothing", link(FILE, "nowhere"), (1, 2), ()),
    ("a link to itself", link(FILE, "model.safetensors"), (1, 2), ()),
    ("missing", remove(FILE), (1, 2), ()),
    ("no tensors at all", tensors(lambda found: {"x": ["F32", [0], b""]}), (1,), ()),
    ("twice as many layers as the config", fields("model/config.json", num_hidden_layers=1), (0, 1), ()),
    ("fewer layers than the config", fields("model/config.json", num_hidden_layers=3), (1,), ("layers.2",)),
    ("a pickle of nothing", together(remove(FILE), text("model/pytorch_model.bin", "junk")), (1,),
        ("pytorch_model.bin",)),
    ("a pickle that is a pipe", together(remove(FILE), pipe("model/pytorch_model.bin")), (1, 2), ()),
    ("a pickle that is a pointer", together(remove(FILE), text("model/pytorch_model.bin", POINTER)), (1,), ("LFS",)),
    ("an adapter beside the weights", text("model/adapter_config.json", '{"peft_type": "LORA"}'), (1, 2, 3),
        ("adapter",)),
    ("an index that leaves the folder", _map(lambda found: dict.fromkeys(found, "../model.safetensors")), (1, 2),
        ("outside",)),
    ("an index with an absolute path", _map(lambda found: dict.fromkeys(found, "/etc/passwd")), (1, 2), ()),
    ("an index with numbers", _map(lambda found: dict.fromkeys(found, 7)), (1, 2), ("index.json",)),
    ("an index with lists", _map(lambda found: dict.fromkeys(found, ["a"])), (1, 2), ("index.json",)),
    ("an index with null", _map(lambda found: dict.fromkeys(found, None)), (1, 2), ("index.json",)),
    ("an index with empty names", _map(lambda found: dict.fromkeys(found, "")), (1, 2), ("index.json",)),
    ("an index with other shards", _map(lambda found: dict.fromkeys(found, "model-9.safetensors")), (1, 2),
        ("model-9.safetensors",)),
    ("an index that knows half", _map(lambda found: dict(list(found.items())[::2])), (0, 1, 2), ()),
    ("an index whose map is a list", _map(lambda found: list(found)), (1, 2), ("index.json",)),
    ("an index with a zero byte", _map(lambda found: dict.fromkeys(found, "a\0b")), (1, 2), ("index.json",)),
    ("an index with a name too long", _map(lambda found: dict.fromkeys(found, "x" * 300)), (1, 2), ()),
    ("an index without a map", together(_sharded, text(INDEX, "{}")), (1, 2), ("index.json",)),
    ("an index that is a list", together(_sharded, text(INDEX, "[]")), (1, 2), ("index.json",)),
    ("an index that is no JSON", together(_sharded, text(INDEX, "{")), (1, 2), ("index.json",)),
    ("an empty index", together(_sharded, text(INDEX, "")), (1, 2), ("index.json",)),
    ("a binary index", together(_sharded, text(INDEX, bytes(range(256)))), (1, 2), ("index.json",)),
    ("a deep index", together(_sharded, text(INDEX, "[" * 100_000 + "]" * 100_000)), (1, 2), ("index.json",)),
    ("an index that is a pipe", together(_sharded, pipe(INDEX)), (1, 2), ("index.json",)),
    ("an index that is a folder", together(_sharded, directory(INDEX)), (1, 2), ()),
    ("a missing shard", together(_sharded, remove(PART)), (1,), ("model-00001-of-00002.safetensors",)),
    ("a cut shard", together(_sharded, cut(PART)), (1,), ("model-00001-of-00002.safetensors",)),
    ("a shard that is a pointer", together(_sharded, text(PART, POINTER)), (1,), ("LFS",)),
    ("a shard that is a pipe", together(_sharded, pipe(PART)), (1, 2), ("model-00001-of-00002.safetensors",)),
    ("an outside file in an index of pickles", _outside, (1, 2), ()),
    # what nobody loads stops nobody
    ("sharded as it should be", _sharded, (0,), ()),
    ("a stale index", _index({"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00004.safetensors"}}),
        (0,), ()),
    ("a broken index beside the weights", _index("{"), (0,), ()),
    ("another file that is a pointer", text("model/consolidated.safetensors", POINTER), (0,), ()),
    ("another file that is broken", text("model/other.safetensors", "junk"), (0,), ()),
    ("a broken pickle beside the weights", text("model/pytorch_model.bin", POINTER), (0,), ()),
    ("a stale index of pickles", text("model/pytorch_model.bin.index.json", '{"weight_map": {"a": "../x.bin"}}'), (0,),
        ()),
    ("weights behind a link", lambda folder: (
        (folder / FILE).rename(folder / "blob"), link(FILE, "../blob")(folder)), (0,), ()),
]  # fmt: skip


def faults() -> Iterator[Fault]:
    for number, name in enumerate(NAMES):
        dtype = DTYPES[number % len(DTYPES)]  # each tensor with one other dtype, each dtype of several tensors
        for label in (*SHAPES, dtype) if "layers.1" not in name else ("missing", "NaN"):
            damage, codes = DAMAGES[label]
            yield Fault("tensors", f"{name} {label}", SAVE, _damaged(name, damage), codes, (name,))
    for family, names in OTHERS.items():
        yield Fault("weight files", f"{family} as it is", SAVE, None, (0,), (), (family,), ("out",), ("out",))
        for name in names:
            for label in ("missing", "other shape", "NaN", "int8"):
                damage, codes = DAMAGES[label]
                words = () if family == "gpt2" else (name,)  # its checkpoints may leave the prefix out
                yield Fault(
                    "tensors", f"{family} {name} {label}", SAVE, _damaged(name, damage), codes, words, (family,)
                )
    for label, change, codes, words in FILES:
        writes = ("out",) if 0 in codes else ()
        yield Fault("weight files", label, SAVE, change, codes, words, writes=writes, targets=("out",))
    for label in ("cut in half", "a pointer of Git LFS", "a pipe", "an index that leaves the folder"):
        change, codes, words = next(one[1:] for one in FILES if one[0] == label)
        for what, command in (
            ("evaluate", "evaluate --model model --eval_data text.txt --max_seq_len 16"),
            ("sparsify", "sparsify --model model --n 2 --m 4 --eval_data text.txt --max_seq_len 16 --save_model out"),
            ("a teacher", "recover --model pruned --teacher model --data text.txt --steps 1 --eval_data none "
             "--save_model out --device cpu --max_seq_len 16"),
        ):  # fmt: skip
            needs = ("llama", "text", *["pruned"] * (what == "a teacher"))
            yield Fault("weight files", f"{what}: {label}", command, change, codes, words, needs)
