"""Tokens per second and peak memory of a Llama cut to half its widths, against the dense one.

    python benchmarks/speed.py              # a 158 M-parameter Llama in float32 on two threads of the CPU
    python benchmarks/speed.py --gpu        # Llama-3.1-8B's shape in bfloat16, also as CUDA graphs, batch 1 and 8
    python benchmarks/speed.py --try_out    # two layers and few tokens, to see that it runs; keeps nothing

The pruned shape is what `--pruning_ratio 0.5` gives; all weights are random, which the speed does not depend on. Both
models are measured in one process, in turns; a ratio is of tokens per second in the same round.
"""

import argparse
import json
import re

import torch
from calibration import SMALL
from measure import keep
from score_cut import SHAPES
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_pruner.evaluation.speed import QUANTITIES, measure, ratios, summary
from llm_pruner.model.families import resize, widths_of
from llm_pruner.shape.widths import widths_by_ratio

CPU = {"batch_size": 1, "prompt_len": 128, "new_tokens": 64, "repeats": 9}
GPU = {"prompt_len": 512, "new_tokens": 128, "repeats": 9}
# on the GPU
BATCHES = (1, 8)
# times the dense model's tokens per second, on a GPU as CUDA graphs
GOALS = {"decode": 1.8, "prefill": 2.5}
THREADS = 2


def random_models(config: LlamaConfig, device: str, dtype: torch.dtype) -> dict:
    """{"dense": …, "pruned": …}"""
    after = widths_by_ratio(widths_of(config), {"hidden": 0.5, "heads": 0.5, "mlp": 0.5}, False)
    with torch.device(device):
        return {
            name: AutoModelForCausalLM.from_config(shape, dtype=dtype).eval()
            for name, shape in (("dense", config), ("pruned", resize(config, after)))
        }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items()}


def summarised(measured: dict) -> dict:
    """What `measure` found, each list of rounds by its median, lowest and highest, and the ratios."""
    models = {}
    for name, result in measured.items():
        modes = {
            mode: found if "reason" in found else {q: rounded(summary(found[q])) for q in QUANTITIES}
            for mode, found in result["modes"].items()
        }
        models[name] = {**result, "modes": modes}
    ratio = ratios(measured, "dense")["pruned"]
    return {
        "ratio": {m: {phase: rounded(values) for phase, values in found.items()} for m, found in ratio.items()},
        "models": models,
    }


def on_cpu(layers: int | None, size: dict) -> tuple[str, dict]:
    torch.set_num_threads(THREADS)
    config = LlamaConfig(**SMALL, num_hidden_layers=layers or 12, vocab_size=8192, max_position_embeddings=2048)
    models = random_models(config, "cpu", torch.float32)
    return "cpu", {"threads": THREADS, "dtype": "float32", **size, **summarised(measure(models, **size))}


def on_gpu(layers: int | None, size: dict) -> tuple[str, dict]:
    shape = {**SHAPES["8B"], **({"num_hidden_layers": layers} if layers else {})}
    models = random_models(LlamaConfig(**shape), "cuda", torch.bfloat16)
    batches = {batch: summarised(measure(models, batch_size=batch, **size)) for batch in BATCHES}
    # None where the capture failed
    graphs = [batch["ratio"].get("cuda_graph") for batch in batches.values()]
    reached = {name: all(found and found[name]["median"] >= goal for found in graphs) for name, goal in GOALS.items()}
    card = torch.cuda.get_device_name()
    result = {"card": card, "dtype": "bfloat16", **size, "goals": GOALS, "goals_reached": reached, "batch": batches}
    return re.sub(r"\W+", "_", card.lower()).strip("_"), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--try_out", action="store_true")
    args = parser.parse_args()
    size = GPU if args.gpu else CPU
    if args.try_out:
        size = {**size, "prompt_len": 16, "new_tokens": 4, "repeats": 2}
    name, result = (on_gpu if args.gpu else on_cpu)(2 if args.try_out else None, size)
    if args.try_out:
        print(json.dumps(result, indent=2))
    else:
        keep(f"speed_{name}", {"model": "random Llama, dense and at half its widths", **result})


if __name__ == "__main__":
    main()
