"""Perplexity over windows, without ever holding a window's full logits."""

import logging
import math
import sys

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from llm_pruner.errors import RunError, is_out_of_memory

log = logging.getLogger(__name__)

LOGITS = 2**25  # float32 logits held at a time: 128 MiB
TOKENS = {"cuda": 16_384, "cpu": 4_096}  # tokens per forward pass to start with


@torch.no_grad()
def perplexity(model, windows: torch.Tensor, batch_size: int | None = None, label: str = "perplexity") -> float:
    """exp of the mean over windows of the window's mean next-token loss.

    windows: LongTensor [n, length]. batch_size: windows per forward pass; by default what should fit, halved
    as long as memory runs out. RunError when not even one window fits.
    """
    length = windows.shape[1]
    batch = batch_size or max(1, TOKENS.get(model.device.type, 4_096) // length)
    total, done = 0.0, 0
    interval = 0.2 if sys.stderr.isatty() else 10  # a log file wants few lines
    bar = tqdm(total=len(windows), desc=label, unit="window", delay=2, leave=False, mininterval=interval)
    with bar as progress:
        while done < len(windows):
            try:
                loss = _summed_loss(model, windows[done : done + batch])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if batch == 1:
                    raise RunError(
                        f"a window of {length} tokens does not fit in memory; use a smaller --max_seq_len"
                    ) from error
                batch //= 2
                log.warning("out of memory; going on with %d windows per batch", batch)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            total += loss
            progress.update(min(batch, len(windows) - done))
            done += batch
    mean = total / (len(windows) * (length - 1))
    return math.exp(mean) if mean < 700 else math.inf if mean == mean else math.nan


def _summed_loss(model, windows: torch.Tensor) -> float:
    """Σ of the next-token losses of `windows`, the logits made in chunks of positions."""
    hidden = model.base_model(input_ids=windows.to(model.device), use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    hidden = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    targets = windows[:, 1:].reshape(-1)
    total = 0.0
    step = max(1, LOGITS // head.weight.shape[0])
    for start in range(0, len(hidden), step):
        logits = head(hidden[start : start + step])
        if softcap:
            logits = torch.tanh(logits / softcap) * softcap
        target = targets[start : start + step].to(logits.device)
        total += F.cross_entropy(logits.float(), target, reduction="sum").double().item()
    return total
