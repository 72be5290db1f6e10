"""A teacher's likeliest tokens in a cache on disk, for some k: bytes per token, seconds to fill it against the forward
passes alone, and how far the loss against it is from the divergence over all tokens. The teacher is llama-6m, the
student what Wanda-sp leaves of it; without the shared folder both are of the demo model.

    python benchmarks/teacher_cache.py            # about a minute; results/teacher_cache.json
"""

import os
import tempfile
import time
from pathlib import Path

import torch
from measure import keep

from llm_pruner import RecoverOptions, prune_checkpoint
from llm_pruner.config.prune import PruneOptions
from llm_pruner.model import loading
from llm_pruner.model.divergence import kl
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.recovery import sources
from llm_pruner.recovery.examples import Examples, collate, training_examples
from llm_pruner.recovery.likeliest import likeliest_loss
from llm_pruner.recovery.settled import Settled, settle
from llm_pruner.recovery.teacher_cache import filled

SHARED = Path(os.environ.get("LLM_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))
KEPT = (16, 64, 256, 1024)
WINDOWS, LENGTH, RATIO = 64, 128, 0.2


def batches(examples: Examples, size: int):
    """The examples' numbers and tokens, LongTensor [size, length], as a training reads them."""
    for start in range(0, len(examples), size):
        some = range(start, min(start + size, len(examples)))
        yield some, collate([examples[i] for i in some])["input_ids"]


@torch.no_grad()
def divergence(student, teacher, examples: Examples, settled: Settled) -> torch.Tensor:
    """KL of every predicted token, over all tokens of the vocabulary."""
    found = []
    for _, ids in batches(examples, settled.train_batch_size):
        own, wanted = (model(ids, use_cache=False).logits[:, :-1].flatten(0, 1) for model in (student, teacher))
        found.append(kl(wanted, own))
    return torch.cat(found)


@torch.no_grad()
def measured(found, settled: Settled, examples: Examples, student, teacher, full: torch.Tensor) -> dict:
    """The figures of one k. The teacher is loaded already, so that seconds are of its passes and the disk's."""
    started = time.perf_counter()
    cache = filled(found, settled, examples, lambda: teacher)
    fill = time.perf_counter() - started
    own = []
    for some, ids in batches(examples, settled.train_batch_size):
        logits = student(ids, use_cache=False).logits[:, :-1].flatten(0, 1)
        own.append(likeliest_loss(logits, cache.of(some, logits.device)))
    loss = torch.cat(own)
    rest = torch.cat([cache.of(some, ids.device).log_rest.exp() for some, ids in batches(examples, 8)])
    return {
        "bytes_per_token": cache.size(range(len(cache.shards))) / len(loss),
        "seconds_to_fill": round(fill, 2),
        "mean_mass_of_the_rest": rest.mean().item(),
        "kl": loss.mean().item(),
        "mean_absolute_error_of_kl": (loss - full).abs().mean().item(),
    }


@torch.no_grad()
def forward(teacher, examples: Examples, size: int) -> float:
    """Seconds of the teacher's passes alone."""
    started = time.perf_counter()
    for _, ids in batches(examples, size):
        teacher(ids, use_cache=False)
    return time.perf_counter() - started


def main() -> None:
    own = SHARED / "models" / "llama-6m"
    model, text = ("demo", "demo") if not own.is_dir() else (own, SHARED / "data" / "wikitext-2" / "valid.txt")
    with tempfile.TemporaryDirectory() as name:
        half = f"{name}/pruned"
        prune_checkpoint(
            PruneOptions(
                model=str(model), param_ratio=RATIO, importance="wanda_sp", calibration_data=(str(text),), nsamples=32,
                calibration_seq_len=LENGTH, save_model=half, eval_data="none", device="cpu",
            )
        )  # fmt: skip
        results: dict = {}
        for k in KEPT:
            asked = RecoverOptions(
                model=half, teacher=str(model), method="distil", data=str(text), eval_data="none", nsamples=WINDOWS,
                train_seq_len=LENGTH, device="cpu", mixed_precision="no", teacher_cache=f"{name}/{k}", teacher_top_k=k,
            )  # fmt: skip
            found = sources.find(asked)
            settled = settle(asked, found)
            if not results:
                examples = training_examples(
                    settled.data, settled.train_seq_len, load_tokenizer(found.student), found.config.vocab_size, WINDOWS
                )
                cpu = settled.torch_device
                student = loading.load_model(found.student, found.config, "float32", cpu)
                teacher = loading.load_model(found.teacher, found.teacher_config, "float32", cpu)
                forward(teacher, examples, settled.train_batch_size)
                seconds = forward(teacher, examples, settled.train_batch_size)
                full = divergence(student, teacher, examples, settled)
            results[k] = measured(found, settled, examples, student, teacher, full)
    keep("teacher_cache", {
        "model": Path(model).name, "vocab_size": found.config.vocab_size, "windows": len(examples), "length": LENGTH,
        "student": f"Wanda-sp, {RATIO:.0%} of the parameters removed", "seconds_forward": round(seconds, 2),
        "kl": full.mean().item(), "k": results,
    })  # fmt: skip


if __name__ == "__main__":
    main()
