"""Score and cut, in units of one float32 sum of squares over all parameters, and the peak memory.

python benchmarks/score_cut.py              # a random 1.1 B-parameter Llama in bfloat16, on the CPU
python benchmarks/score_cut.py --gpu        # a random Llama-3.1-8B in bfloat16, on the GPU
"""

import argparse
import gc
import time
from dataclasses import replace
from statistics import median

import torch
from measure import HostMemory, keep
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_pruner.calibration.statistics import Statistics
from llm_pruner.calibration.weights import Weights
from llm_pruner.importance import criterion_of, score
from llm_pruner.importance.selection import choose, scored_groups
from llm_pruner.model.axes import HEADS, HIDDEN, MLP
from llm_pruner.model.families import widths_of
from llm_pruner.model.surgery import cut
from llm_pruner.model.trace import trace_groups
from llm_pruner.shape.plan import make_plan
from llm_pruner.shape.widths import widths_by_ratio

SHAPES = {
    "1.1B": {
        "hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000,
    },
    "8B": {
        "hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip


def random_model(shape: str, device: str):
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[shape]), dtype=torch.bfloat16)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.02)
    return model.eval()


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def sum_of_squares(model, device: str) -> float:
    """Seconds for one float32 sum of squares over every parameter."""
    synchronize(device)
    started = time.perf_counter()
    total = torch.zeros((), device=device)
    for parameter in model.parameters():
        total += parameter.float().square().sum()
    total.item()
    return time.perf_counter() - started


def prune(model, device: str):
    """(pruned model, seconds to score, seconds to cut) at a width ratio of 0.5; tracing is not counted."""
    groups, before = trace_groups(model), widths_of(model.config)
    after = widths_by_ratio(before, {HIDDEN: 0.5, HEADS: 0.5, MLP: 0.5}, False)
    after = (after,) * model.config.num_hidden_layers
    plan, config = make_plan(model, groups, after)
    synchronize(device)
    started = time.perf_counter()
    weights = Weights(dict(model.named_parameters()))
    scored = scored_groups(groups, before, after)
    scores = score(scored, criterion_of("magnitude"), Statistics(weights))
    weights.check_all_finite()
    plan = replace(plan, kept=choose(groups, scores, before, after))
    synchronize(device)
    scored_at = time.perf_counter()
    new = cut(model, groups, plan.kept, config)
    synchronize(device)
    return new, scored_at - started, time.perf_counter() - scored_at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device, shape = ("cuda", "8B") if args.gpu else ("cpu", "1.1B")
    baseline = 0 if args.gpu else HostMemory.now()
    # imports, allocator, kernels
    prune(random_model("1.1B", device), device)
    gc.collect()
    runs = []
    for _ in range(args.repeats):
        if args.gpu:
            torch.cuda.empty_cache()
        model = random_model(shape, device)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        sum_of_squares(model, device)
        reference = min(sum_of_squares(model, device) for _ in range(3))
        if args.gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        else:
            HostMemory.reset_peak()
        model, scoring, cutting = prune(model, device)
        peak = torch.cuda.max_memory_allocated() if args.gpu else HostMemory.peak() - baseline
        runs.append({
            "score_seconds": round(scoring, 3),
            "cut_seconds": round(cutting, 3),
            "sum_of_squares_seconds": round(reference, 3),
            "ratio": round((scoring + cutting) / reference, 2),
            "peak_over_model": round(peak / size, 3),
        })  # fmt: skip
        del model
        gc.collect()
    keep(
        f"score_cut_{'gpu' if args.gpu else 'cpu'}",
        {
            "model": f"random Llama, {shape} parameters, bfloat16, width ratio 0.5",
            "ratio": median(run["ratio"] for run in runs),
            "peak_over_model": max(run["peak_over_model"] for run in runs),
            "score_and_cut_seconds": median(round(run["score_seconds"] + run["cut_seconds"], 3) for run in runs),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
