"""Decoding with sparse activations against dense: matrix-vector products of Llama-3.1-8B's shapes and whole models of
random weights, by the share of the inputs that is kept, beside what memory bandwidth allows; on a GPU both as CUDA
graphs, and prefill with 2:4 weights as semi-structured tensors.

    python benchmarks/sparse_decode.py            # on the CPU; results/sparse_decode_cpu.json
    python benchmarks/sparse_decode.py --gpu      # Triton's kernel; results/sparse_decode_<card>.json, ten minutes
"""

import argparse
import gc
import json
import re
import time
from statistics import median

import torch
from measure import keep
from score_cut import SHAPES
from speed import rounded, summarised
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_pruner.config.recipe import THRESHOLD, Recipe
from llm_pruner.evaluation.speed import measure
from llm_pruner.sparsity.calibration import sparsify_activations
from llm_pruner.sparsity.decode import by_columns, fast_for, speed_up
from llm_pruner.sparsity.linear import SparseLinear
from llm_pruner.sparsity.semi import semi_structured
from llm_pruner.sparsity.weights import sparsify_weights

# inputs and outputs of those of Llama-3.1-8B
LAYERS = {"q, o": (4096, 4096), "k, v": (4096, 1024), "gate, up": (4096, 14336), "down": (14336, 4096)}
KEPT = (1.0, 0.75, 0.5, 0.25, 0.1)
GOALS = {"matrix-vector product, half kept": 1.6, "whole model, half kept": 1.35}
GPU = {"prompt_len": 128, "new_tokens": 64, "repeats": 5}
CPU = {"prompt_len": 16, "new_tokens": 8, "repeats": 5}
THREADS = 2
# more than any cache holds
FLUSHED = 2**28


def threshold_for(kept: float) -> float:
    """That which this share of |x| exceeds, x normal."""
    return torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(1 - kept / 2)).item() if kept < 1 else -1.0


def sparse_layer(inputs: int, outputs: int, recipe: Recipe, device, dtype) -> SparseLinear:
    dense = nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)
    return SparseLinear(dense.requires_grad_(False), recipe).eval()


def recipes(kept: float) -> dict[str, Recipe]:
    """Those that keep this share."""
    found = {"threshold": Recipe(ratio=max(1 - kept, 1e-6), select=THRESHOLD)}
    if kept == 0.5:
        found |= {"8:16": Recipe(n=8, m=16), "2:4": Recipe(n=2, m=4), "of every token": Recipe(ratio=0.5)}
    return found


def measured(layer: SparseLinear, dense: nn.Linear, x: torch.Tensor, timed, rounds: int = 7) -> dict:
    """The sparse layer against the dense one in turns; `timed(layer)` is what runs it once and says its seconds."""
    expected = layer(x).float()
    survives = layer.sparsity.kept(layer.sparsity.centred(x)[0]).float().mean().item()
    by_columns(layer)
    layer.decode = fast_for(x.device)(layer)
    error = ((layer(x).float() - expected).norm() / expected.norm()).item()
    plain, own = timed(dense), timed(layer)
    turns = [(plain(), own()) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in turns)
    seconds = median(b for _, b in turns)
    return rounded({
        "kept": survives, "ratio": median(ratios), "low": ratios[0], "high": ratios[-1],
        "bandwidth_limit": 1 / survives, "microseconds": 1e6 * seconds,
        "bytes_per_second": survives * dense.weight.nbytes / seconds, "error": error,
    })  # fmt: skip


@torch.inference_mode()
def products(device: str, dtype, timing) -> dict:
    """{layer: {"inputs", "outputs", "patterns": [{"pattern", …} for each pattern and share]}}."""
    found = {}
    for name, (inputs, outputs) in LAYERS.items():
        x = torch.randn(1, 1, inputs, device=device, dtype=dtype)
        dense = nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)
        rows = found[name] = {"inputs": inputs, "outputs": outputs, "patterns": []}
        for kept in KEPT:
            for pattern, recipe in recipes(kept).items():
                layer = sparse_layer(inputs, outputs, recipe, device, dtype)
                if layer.sparsity.threshold is not None:
                    layer.sparsity.threshold.fill_(threshold_for(kept))
                rows["patterns"].append({"pattern": pattern, **measured(layer, dense, x, timing(x))})
    return found


def by_clock(x: torch.Tensor):
    """Seconds of one call on the CPU: the median of a few, behind each of which FLUSHED bytes were written."""
    flush = torch.empty(FLUSHED, dtype=torch.uint8)

    def timed(layer):
        def once() -> float:
            found = []
            for _ in range(7):
                flush.fill_(len(found))
                started = time.perf_counter()
                layer(x)
                found.append(time.perf_counter() - started)
            return median(found)

        once()
        return once

    return timed


def by_graph(x: torch.Tensor):
    """Seconds of one replay of the layer as a CUDA graph, caches cold: the median of a few."""
    flush = torch.empty(FLUSHED, dtype=torch.uint8, device=x.device)

    def timed(layer):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                layer(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            layer(x)

        def once() -> float:
            found = []
            for _ in range(10):
                flush.zero_()
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                graph.replay()
                end.record()
                end.synchronize()
                found.append(start.elapsed_time(end) / 1000)
            return median(found)

        return once

    return timed


def random_model(config: LlamaConfig, device, dtype):
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)


def whole_models(config: LlamaConfig, device, dtype, size: dict) -> dict:
    """Decode of the dense model and of it with sparse inputs, in turns; random weights, calibrated on random tokens."""
    found = {}
    dense = random_model(config, device, dtype)
    prompts = [torch.randint(config.vocab_size, (1, 128), device=device) for _ in range(4)]
    for name, recipe in {
        "threshold, half kept": Recipe(ratio=0.5, select=THRESHOLD),
        "8:16": Recipe(n=8, m=16),
        "threshold, a quarter kept": Recipe(ratio=0.75, select=THRESHOLD),
    }.items():
        sparse = random_model(config, device, dtype)
        sparsify_activations(sparse, recipe, prompts)
        layers = speed_up(sparse)
        found[name] = {
            "layers_sped_up": layers,
            **summarised(measure({"dense": dense, "pruned": sparse}, **size)),
        }
        del sparse
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return found


def prefill(config: LlamaConfig, device, dtype, size: dict) -> dict:
    """Dense against 2:4 weights in semi-structured tensors."""
    dense, sparse = (random_model(config, device, dtype) for _ in range(2))
    sparsify_weights(sparse, Recipe(sparse="weights", n=2, m=4))
    packed = semi_structured(sparse)
    size = {**size, "prompt_len": 2048, "new_tokens": 8}
    return {"layers_packed": packed, **summarised(measure({"dense": dense, "pruned": sparse}, **size))}


def on_gpu(try_out: bool, size: dict) -> tuple[str, dict]:
    card = torch.cuda.get_device_name()
    config = LlamaConfig(
        **{**SHAPES["8B"], "max_position_embeddings": 8192, **({"num_hidden_layers": 2} if try_out else {})}
    )
    result = {"card": card, "dtype": "bfloat16", **size, "products": products("cuda", torch.bfloat16, by_graph)}
    result["models"] = whole_models(config, "cuda", torch.bfloat16, size)
    result["prefill_2_4"] = prefill(config, "cuda", torch.bfloat16, size)
    halves = [
        row["ratio"] for own in result["products"].values() for row in own["patterns"] if 0.45 < row["kept"] < 0.55
    ]
    graphs = {
        name: own["ratio"].get("cuda_graph", {}).get("decode", {}).get("median")
        for name, own in result["models"].items()
    }
    result |= {"goals": GOALS, "reached": {"matrix-vector product, half kept": halves, "whole models": graphs}}
    return re.sub(r"\W+", "_", card.lower()).strip("_"), result


def on_cpu(try_out: bool, size: dict) -> tuple[str, dict]:
    torch.set_num_threads(THREADS)
    config = LlamaConfig(**{**SHAPES["1.1B"], **({"num_hidden_layers": 2} if try_out else {})})
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    result = {"threads": THREADS, **size, "products": {n: products("cpu", d, by_clock) for n, d in dtypes.items()}}
    result["model"] = "random Llama of 1.1 B parameters, float32"
    result["models"] = whole_models(config, "cpu", torch.float32, size)
    return "cpu", result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--try_out", action="store_true", help="two layers, few tokens; nothing is kept")
    args = parser.parse_args()
    size = {"prompt_len": 16, "new_tokens": 4, "repeats": 2} if args.try_out else GPU if args.gpu else CPU
    name, result = (on_gpu if args.gpu else on_cpu)(args.try_out, size)
    if args.try_out:
        print(json.dumps(result, indent=2))
    else:
        keep(f"sparse_decode_{name}", result)


if __name__ == "__main__":
    main()
