"""Reports as the commands write them, by hand: one pruning, its recovery, an evaluation of three models."""

SIX = {"before": 6, "after": 6, "kept": None}
BEFORE = {"hidden_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 80, "head_dim": 8}
AFTER = {**BEFORE, "num_attention_heads": [8, 6, 4, 2, 4, 8], "num_key_value_heads": [4, 3, 2, 1, 2, 4],
         "intermediate_size": 40}  # fmt: skip
WORDS = {"data": "words.txt", "max_seq_len": 128, "windows": 1501}
TOLD = {"seed": 7, "seconds": {"load": 1.5, "score": 63.0}, "peak_memory": {"host": 1_234_000_000},
        "versions": {"llm_pruner": "0.1.0", "torch": "2.13.0"}}  # fmt: skip


def quantiles(scale: float) -> list[float]:
    return [scale * value for value in (0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 9.0)]


def pruned(**changes) -> dict:
    return {
        "model": "models/dense-1b",
        "model_type": {"before": "llama", "after": "pruned_llama"},
        "parameters": {"before": 1_000_000, "after": 600_000},
        "bytes": {"before": 2_000_000, "after": 1_200_000},
        "perplexity": {"before": 20.0, "after": 60.0},
        "evaluation": WORDS,
        "calibration": {"data": "c4", "nsamples": 128, "seq_len": 64},
        "widths": {"before": BEFORE, "after": AFTER},
        "layers": SIX,
        "removed": {"parameters": 0.4},
        "importance": "flap",
        "compensate": "bias",
        "masked": False,
        "scores": {"num_key_value_heads": [quantiles(n + 1.0) for n in range(6)], "hidden_size": [quantiles(1e-3)]},
        **TOLD,
        "command": "python prune_llm.py --model models/dense-1b --param_ratio 0.4 --save_model out/small",
        "options": {"model": "models/dense-1b", "param_ratio": 0.4, "structure": None, "save_model": "out/small"},
        **changes,
    }


def recovered(**changes) -> dict:
    history = [{"step": n, "seconds": 12.0 * n, "loss": 3.0 - n / 5, "learning_rate": 1e-3} for n in range(1, 11)]
    history += [{"step": 5, "seconds": 60.0, "perplexity": 40.0}, {"step": 10, "seconds": 120.0, "perplexity": 31.0}]
    return {
        "step": "recover",
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
        "training": {
            "data": "train.txt", "windows": 4096, "max_seq_len": 64, "tokens": 983_040, "steps": 480, "epochs": 1.875,
            "minutes": 2.0, "tokens_per_second": 8192.0, "learning_rate": 0.0104, "batch_size": 16,
            "gradient_accumulation_steps": 1, "processes": 1, "precision": "bf16", "trainable_parameters": 599_000,
            "resumed_at": [240],
        },
        "history": history,
        "made_from": pruned(),
        **TOLD,
        "command": "python -m llm_pruner recover --model out/small",
        "options": {"model": "out/small", "save_model": "out/small-recovered"},
        **changes,
    }  # fmt: skip


def evaluated(**changes) -> dict:
    speed = lambda prefill, decode: {  # noqa: E731
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

    def model(name: str, parameters: int, perplexity: float | None, share: float, **own) -> dict:
        return {
            "name": name,
            "path": f"/somewhere/{name}",
            "model_type": "llama",
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
            "speed": speed(8000.0 / (1 + share), 200.0 / (1 + share)),
            **own,
        }

    between = lambda middle: {"median": middle, "low": 0.9 * middle, "high": 1.1 * middle}  # noqa: E731
    return {
        "step": "evaluate",
        "models": [
            model("dense-1b", 1_000_000, 20.0, 0.25),
            model("small", 600_000, 60.0, 0.0, path="/home/me/out/small", widths=AFTER),
            model("other", 700_000, None, 0.125, widths={**BEFORE, "intermediate_size": 60}),
        ],
        "dense": "dense-1b",
        "ratios": {"small": {"eager": {"prefill": between(1.25), "decode": between(1.5)}}},
        "conditions": {"device": "cpu", "prompt_len": 32},
        **TOLD,
        "command": "python -m llm_pruner evaluate --model models/dense-1b out/small other",
        "options": {"model": ["models/dense-1b", "out/small", "other"]},
        **changes,
    }


def searched() -> dict:
    shape = lambda neurons, layers, untied, expected, kl: {  # noqa: E731
        "widths": {**BEFORE, "intermediate_size": neurons}, "expected": expected, "layers": layers, "untied": untied,
        "kl": kl,
    }  # fmt: skip
    tried = [
        shape(40, None, False, 0.02, 0.05),
        shape(60, [0, 1, 3, 4], False, 0.3, 0.2),
        shape(30, None, True, 0.1, None),
    ]
    own = {**shape(40, None, False, 0.01, 0.03), "widths": [{**BEFORE, "intermediate_size": n} for n in range(38, 44)]}
    return {
        "search": tried,
        "finals": [{**tried[1], "kl": 0.0123}, {**own, "kl": 0.0301}, {**tried[0], "kl": 0.0402}],
        "kl": 0.0111,
        "kl_plain": {"flap": 0.0777},
        "stream_errors": [0.01, 0.02, 0.03, 0.025],
    }
