"""Weights that are imperfect in their numbers: zeros that pruned and merged models have, and overflow."""

import math
from collections.abc import Callable, Iterator

from tests.faults.changes import Change, fields, floats, numbers, tensors, together
from tests.faults.contract import Fault
from tests.faults.stock import CALIBRATED

BEST = (
    "prune --model model {} --search_minutes 0 --epochs 1 --eval_data text.txt --max_seq_len 16 --save_model out "
    + CALIBRATED
)
SHAPES = ("--pruning_ratio 0.5", "--param_ratio 0.3", "--param_ratio 0.3 --per_layer")
PARTS = ("mlp.", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "v_proj", "o_proj", "q_proj", "k_proj", "self_attn.",
         "input_layernorm", "post_attention_layernorm")  # fmt: skip


def _every(part: str, change: Callable[[list[float]], list[float]]) -> Change:
    def damage(found: dict) -> None:
        for name, (dtype, shape, blob) in found.items():
            if part in name:
                found[name] = [dtype, shape, floats(change(numbers(blob)))]

    return tensors(damage)


def zero(part: str) -> Change:
    return _every(part, lambda values: [0.0] * len(values))


def _scaled(part: str, factor: float) -> Change:
    return _every(part, lambda values: [value * factor for value in values])


def _half_of_it(part: str) -> Change:
    return _every(part, lambda values: [0.0] * (len(values) // 2) + values[len(values) // 2 :])


def faults() -> Iterator[Fault]:
    more = {"needs": ("llama", "text"), "writes": ("out",), "targets": ("out",)}
    for part in PARTS:
        for shape in SHAPES if part in ("mlp.", "v_proj", "input_layernorm") else SHAPES[1:2]:
            line = BEST.format(shape)
            if (
                "per_layer" in shape
            ):  # saved with a class of its own, which a process that knows this program does not load
                line = line.replace("--save_model out", "--no_save")
            yield Fault(
                "imperfect weights",
                f"{part} of layer 0 zero {shape}",
                line,
                zero(f"layers.0.{_named(part)}"),
                (0,),
                **more,
            )
    for name, change, codes in [
        ("every layer's mlp zero", zero("mlp."), (0,)),
        ("every v_proj zero", zero("v_proj"), (0,)),
        ("half of v_proj zero", _half_of_it("layers.0.self_attn.v_proj"), (0,)),
        ("half of down_proj zero", _half_of_it("layers.1.mlp.down_proj"), (0,)),
        ("the last norm zero", zero("model.norm"), (0, 1)),
        ("embeddings zero", zero("embed_tokens"), (0, 1)),
        ("lm_head zero", zero("lm_head"), (0, 1)),
        ("all zero", zero(""), (0, 1)),
        ("tiny numbers", _scaled("layers.0.mlp", 1e-20), (0,)),
        ("denormal numbers", _scaled("layers.0.self_attn", 1e-40), (0,)),
        ("large numbers", _scaled("layers.0.mlp", 1e6), (0, 1)),
        ("numbers that overflow", _scaled("layers.0.mlp", 1e18), (1,)),
        ("all the same", _every("layers.0.mlp", lambda values: [0.01] * len(values)), (0,)),
        ("a norm of tiny numbers", _scaled("layers.0.input_layernorm", 1e-12), (0,)),
        ("negative norms", _scaled("layers.0.input_layernorm", -1.0), (0,)),
    ]:
        yield Fault("imperfect weights", name, BEST.format("--param_ratio 0.3"), change, codes, **more)
    for shape in SHAPES:
        change = together(_scaled("down_proj", 3000.0), _scaled("up_proj", 3000.0))
        yield Fault(
            "imperfect weights",
            f"fp16 that overflows {shape}",
            BEST.format(f"{shape} --dtype float16"),
            change,
            (1,),
            ("--dtype",),
            **more,
        )
    for method in ("wanda_sp", "flap", "amp", "mag_sp", "magnitude", "taylor"):
        line = BEST.replace("--search_minutes 0 --epochs 1 ", "").format(f"--importance {method} --pruning_ratio 0.5")
        yield Fault("imperfect weights", f"{method}: mlp of layer 0 zero", line, zero("layers.0.mlp."), (0,), **more)
        change = together(_scaled("down_proj", 3000.0), _scaled("up_proj", 3000.0))
        yield Fault(
            "imperfect weights", f"{method}: fp16 that overflows", f"{line} --dtype float16", change, (1,), **more
        )
    scored = "evaluate --model model --eval_data text.txt --max_seq_len 16"
    yield Fault(
        "imperfect weights",
        "evaluate: numbers that overflow",
        scored,
        _scaled("", 1e30),
        (0, 1),
        needs=("llama", "text"),
    )
    yield Fault("imperfect weights", "evaluate: NaN", scored, _every("lm_head", lambda values: [math.nan, *values[1:]]),
        (1,), ("lm_head",),
                needs=("llama", "text"))  # fmt: skip
    yield Fault("imperfect weights", "sparsify: mlp zero",
        "sparsify --model model --n 2 --m 4 --scaling --eval_data text.txt "
                f"--max_seq_len 16 --save_model out {CALIBRATED}", zero("layers.0.mlp."), (0,), **more)  # fmt: skip
    yield Fault("imperfect weights", "evaluate: a norm's eps of zero", scored,
        fields("model/config.json", rms_norm_eps=0.0), (0, 2),
                needs=("llama", "text"))  # fmt: skip


def _named(part: str) -> str:
    return f"self_attn.{part}" if part in ("v_proj", "o_proj", "q_proj", "k_proj") else part
