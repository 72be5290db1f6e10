"""What calibration costs over a plain forward pass, and how much memory, on random Llamas.

    python benchmarks/calibration.py            # a 170 M-parameter Llama in float32 on the CPU
    python benchmarks/calibration.py --gpu      # Llama-3.1-8B's shape, 8 layers of it, in bfloat16

Both run in one process on the same tokens, several times in turn; the ratios are of the fastest runs. First-order
statistics are mean, variance and norm (FLAP, Wanda-sp) and mean |X| (AMP's neurons); AMP's head norm multiplies every
head by its part of o_proj, and is shown apart.
"""

import argparse
import time

import torch
from measure import HostMemory, keep
from transformers import LlamaConfig, LlamaForCausalLM

from llm_pruner.calibration.activations import collect
from llm_pruner.calibration.needs import ABSOLUTE, CONTRIBUTION, MOMENTS
from llm_pruner.model.trace import trace_groups

SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "num_key_value_heads": 8}
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
NEEDS = {"moments": (MOMENTS,), "absolute": (ABSOLUTE,), "both": (MOMENTS, ABSOLUTE), "head norm": (CONTRIBUTION,)}
REPEATS = 5


def random_llama(shape: dict, layers: int, device: str, dtype: torch.dtype):
    config = LlamaConfig(**shape, num_hidden_layers=layers, vocab_size=8192, max_position_embeddings=2048)
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).eval()


@torch.no_grad()
def plain(model, batches) -> None:
    for batch in batches:
        model.base_model(batch.to(model.device), use_cache=False)


def seconds(function) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true")
    gpu = parser.parse_args().gpu
    layers, length, rows = (8, 2048, 8) if gpu else (12, 512, 4)
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    model = random_llama(LARGE if gpu else SMALL, layers, device, dtype)
    groups = trace_groups(model)
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(8192, (rows, length), generator=generator) for _ in range(2)]
    runs = {"plain": lambda: plain(model, batches)}
    runs |= {name: lambda needs=needs: collect(model, batches, groups, needs) for name, needs in NEEDS.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(REPEATS):
        for name, run in runs.items():
            times[name].append(seconds(run))
    fastest = {name: min(values) for name, values in times.items()}
    result = {
        "model": f"random Llama, {sum(p.numel() for p in model.parameters()):,} parameters, {layers} layers, {dtype}",
        "tokens": sum(batch.numel() for batch in batches),
        "plain_seconds": round(fastest["plain"], 3),
        "ratio_to_plain": {name: round(fastest[name] / fastest["plain"], 3) for name in NEEDS},
        "spread_of_plain": round(max(times["plain"]) / fastest["plain"], 3),
        "extra_peak_bytes": extra_memory(model, groups, batches, gpu),
    }
    keep("calibration_gpu" if gpu else "calibration_cpu", result)


def extra_memory(model, groups, batches, gpu: bool) -> dict:
    """Peak above what was held before, of one plain pass and one calibration."""
    extra = {}
    for name, run in (
        ("plain", lambda: plain(model, batches)),
        ("both", lambda: collect(model, batches, groups, NEEDS["both"])),
    ):
        if gpu:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            extra[name] = torch.cuda.max_memory_allocated() - before
        else:
            HostMemory.reset_peak()
            before = HostMemory.now()
            run()
            extra[name] = HostMemory.peak() - before
    return extra


if __name__ == "__main__":
    main()
