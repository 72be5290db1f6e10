"""Reports as the commands write them, by hand: one pruning, its recovery, an evaluation of three models.

Each takes changes by field, as in JSON, and is a report; `as_json` is what report.json holds of it.
"""

import copy
from typing import Any

from llm_pruner.output import reports
from llm_pruner.output.reports import EvaluateReport, PruneReport, RecoverReport, Report, SparsifyReport

SIX = {"before": 6, "after": 6, "kept": None}
BEFORE = {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 80, "head_dim": 8}
AFTER = {**BEFORE, "num_attention_heads": [8, 6, 4, 2, 4, 8], "num_key_value_heads": [4, 3, 2, 1, 2, 4],
         "intermediate_size": 40}  # fmt: skip
WORDS = {"data": "words.txt", "max_seq_len": 128, "windows": 1501}
TOLD = {"seed": 7, "seconds": {"load": 1.5, "score": 63.0}, "peak_memory": {"host": 1_234_000_000},
        "versions": {"llm_pruner": "0.1.0", "torch": "2.13.0"}}  # fmt: skip


def quantiles(scale: float) -> list[float]:
    return [scale * value for value in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0)]


def as_json(make, **changes) -> dict[str, Any]:
    """What report.json holds: of `pruned`, `recovered`, `sparse`, `evaluated`, with other values for some fields."""
    values = copy.deepcopy(VALUES[make])
    changes = {name: one.to_dict() if isinstance(one, Report) else one for name, one in changes.items()}
    return values | changes


def _made(make, changes) -> Report:
    return reports.from_dict(as_json(make, **changes), "report.json")


def pruned(**changes) -> PruneReport:
    return _made(pruned, changes)


def recovered(**changes) -> RecoverReport:
    return _made(recovered, changes)


def sparse(**changes) -> SparsifyReport:
    return _made(sparse, changes)


def evaluated(**changes) -> EvaluateReport:
    return _made(evaluated, changes)


PRUNED = {
    "step": "prune",
    "schema": 2,
    "model": "models/dense-1b",
    "model_type": {"before": "llama", "after": "pruned_llama"},
    "parameters": {"before": 1_000_000, "after": 600_000},
    "decoder_parameters": {"before": 900_000, "after": 500_000},
    "bytes": {"before": 2_000_000, "after": 1_200_000},
    "perplexity": {"before": 20.0, "after": 60.0},
    "evaluation": WORDS,
    "calibration": {"data": "c4", "nsamples": 128, "seq_len": 64},
    "widths": {"before": BEFORE, "after": AFTER},
    "layers": SIX,
    "removed": {"parameters": 0.4},
    "importance": "flap",
    "order": "standard",
    "compensate": "bias",
    "masked": False,
    "scores": {"num_key_value_heads": [quantiles(n + 1.0) for n in range(6)], "hidden_size": [quantiles(1e-3)]},
    **TOLD,
    "command": "python prune_llm.py --model models/dense-1b --param_ratio 0.4 --save_model out/small",
    "options": {"model": "models/dense-1b", "param_ratio": 0.4, "structure": None, "save_model": "out/small"},
}
HISTORY = [{"step": n, "seconds": 12.0 * n, "loss": 3.0 - n / 5, "learning_rate": 1e-3} for n in range(1, 11)]
HISTORY += [{"step": 5, "seconds": 60.0, "perplexity": 40.0}, {"step": 10, "seconds": 120.0, "perplexity": 31.0}]
TRAINING = {
    "data": "train.txt", "windows": 4096, "max_seq_len": 64, "tokens": 983_040, "steps": 480, "epochs": 1.875,
    "minutes": 2.0, "tokens_per_second": 8192.0, "learning_rate": 0.0104, "batch_size": 16,
    "gradient_accumulation_steps": 1, "processes": 1, "precision": "bf16", "trainable_parameters": 599_000,
    "resumed_at": [240],
}  # fmt: skip
RECOVERED = {
    "step": "recover",
    "schema": 2,
    "method": "distil",
    "train_weights": "full",
    "model": "out/small",
    "base_model": "models/dense-1b",
    "teacher": "models/dense-1b",
    "model_type": {"before": "pruned_llama", "after": "pruned_llama"},
    "parameters": {"before": 600_000, "after": 600_000},
    "bytes": {"before": 1_200_000, "after": 1_200_000},
    "perplexity": {"before": 60.0, "after": 30.0},
    "dense_perplexity": 20.0,
    "recovered_share": 0.6309,
    "evaluation": WORDS,
    "training": TRAINING,
    "history": HISTORY,
    "made_from": PRUNED,
    **TOLD,
    "command": "python -m llm_pruner recover --model out/small",
    "options": {"model": "out/small", "save_model": "out/small-recovered"},
}
SPARSE = {
    **{name: PRUNED[name] for name in ("schema", "model", "perplexity", "evaluation", "calibration")},
    "step": "sparsify",
    "model_type": {"before": "llama", "after": "llama"},
    "parameters": {"before": 1_000_000, "after": 1_000_000},
    "bytes": {"before": 2_000_000, "after": 2_000_000},
    "label": "weight 2:4",
    "sparsity": {"sparse": "weights", "n": 2, "m": 4},
    "kept": 0.5,
    "learned": {},
    "zero_shot": {},
    **TOLD,
    "command": "python -m llm_pruner sparsify --model models/dense-1b",
    "options": {"model": ["models/dense-1b"], "save_model": "out/sparse"},
}


def _speed(prefill: float, decode: float) -> dict[str, Any]:
    return {
        "modes": {
            "eager": {
                "prefill_tokens_per_second": [prefill, 1.1 * prefill, 0.9 * prefill],
                "decode_tokens_per_second": [decode, 1.1 * decode, 0.9 * decode],
                "time_to_first_token_seconds": [0.020, 0.021, 0.019],
            },
            "cuda_graph": {"reason": "it holds a branch"},
        },
        "peak_memory": 512_000_000,
    }


def evaluated_model(name: str, parameters: int, perplexity: float | None, share: float, **own) -> dict[str, Any]:
    return {
        "name": name,
        "path": f"/somewhere/{name}",
        "model_type": "llama",
        "dtype": "float32",
        "parameters": parameters,
        "bytes": 2 * parameters,
        "widths": BEFORE,
        "layers": 6,
        "perplexity": {"words.txt": {"value": perplexity, "windows": 1501, "max_seq_len": 128}},
        "zero_shot": {
            "piqa": {"acc": 0.5 + share, "acc_stderr": 0.012, "samples": 1838},
            "hellaswag": {"acc": 0.3, "acc_norm": 0.25 + share, "acc_norm_stderr": 0.009, "samples": 10042},
            "words": {"word_perplexity": 1234.5, "samples": 62},
        },
        "speed": _speed(8000.0 / (1 + share), 200.0 / (1 + share)),
        **own,
    }


def _between(middle: float) -> dict[str, float]:
    return {"median": middle, "low": 0.9 * middle, "high": 1.1 * middle}


EVALUATED = {
    "step": "evaluate",
    "schema": 2,
    "models": [
        evaluated_model("dense-1b", 1_000_000, 20.0, 0.25),
        evaluated_model("small", 600_000, 60.0, 0.0, path="/home/me/out/small", widths=AFTER),
        evaluated_model("other", 700_000, None, 0.125, widths={**BEFORE, "intermediate_size": 60}),
    ],
    "dense": "dense-1b",
    "ratios": {"small": {"eager": {"prefill": _between(1.25), "decode": _between(1.5)}}},
    "conditions": {"device": "cpu", "prompt_len": 32},
    **TOLD,
    "command": "python -m llm_pruner evaluate --model models/dense-1b out/small other",
    "options": {"model": ["models/dense-1b", "out/small", "other"]},
}
VALUES = {pruned: PRUNED, recovered: RECOVERED, sparse: SPARSE, evaluated: EVALUATED}


def _tried(neurons: int, layers: list[int] | None, untied: bool, expected: float, kl: float | None) -> dict[str, Any]:
    widths = {**BEFORE, "intermediate_size": neurons}
    return {"widths": widths, "expected": expected, "layers": layers, "untied": untied, "kl": kl}


def searched() -> dict[str, Any]:
    """`reconstruction` of a pruning, as JSON."""
    tried = [
        _tried(40, None, False, 0.02, 0.05), _tried(60, [0, 1, 3, 4], False, 0.3, 0.2),
        _tried(30, None, True, 0.1, None),
    ]  # fmt: skip
    own = {
        **_tried(40, None, False, 0.01, 0.03),
        "widths": [{**BEFORE, "intermediate_size": n} for n in range(38, 44)],
    }
    return {
        "search": tried,
        "finals": [{**tried[1], "kl": 0.0123}, {**own, "kl": 0.0301}, {**tried[0], "kl": 0.0402}],
        "kl": 0.0111,
        "kl_plain": {"flap": 0.0777},
        "stream_errors": [0.01, 0.02, 0.03, 0.025],
    }
