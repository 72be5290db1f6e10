"""What a recovery does, with every default decided: by its sources, and by the device that it trains on."""

import math
import os
from dataclasses import dataclass, fields
from typing import Any

import torch

from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import UsageError
from llm_pruner.model import loading
from llm_pruner.model.precision import has_quick_bfloat16
from llm_pruner.recovery.sources import Sources

# of a batch by default: on a CPU by what learns, on a GPU
TOKENS = {"full": 1024, "lora": 2048, "cuda": 8192}
# where a launcher numbers its processes
RANK = "LOCAL_RANK"
# by default, of training and of its text
CPU_MINUTES, CPU_WINDOWS = 2.0, 4096
# peak learning rate × √hidden_size: AMP's 3e-4 for LoRA at 4096
RATES = {"full": 0.0064, "lora": 0.0192}


@dataclass(frozen=True)
class Settled:
    """What a recovery does. The fields that are called as options are those options, decided.

    Attributes:
        asked: The options, as they were given.
        precision: no, bf16 or fp16.
    """

    asked: RecoverOptions
    precision: str
    method: str
    train_weights: str
    teacher: str | None
    data: str
    train_seq_len: int
    eval_data: str
    max_seq_len: int
    device: str
    max_minutes: float | None
    save_minutes: float
    nsamples: int | None
    epochs: int | None
    train_batch_size: int
    learning_rate: float

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.asked.seed

    def asdict(self) -> dict[str, Any]:
        """Return {option: value}, decided."""
        decided = {own.name: getattr(self, own.name) for own in fields(self)}
        return {name: decided.get(name, value) for name, value in self.asked.asdict().items()}

    @property
    def torch_device(self) -> torch.device:
        """The device of this process."""
        device = torch.device(self.device)
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", int(os.environ.get(RANK, 0)))
        return device


def settle(options: RecoverOptions, found: Sources) -> Settled:
    """Decide what the options leave open. UsageError for a device that is not there.

    Args:
        options: What was asked for.
        found: What the recovery starts from.
    """
    device = _picked(options)
    cpu = device == "cpu"
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if has_quick_bfloat16(torch.device("cpu" if cpu else "cuda")) else "no"
    bounded = options.steps or options.epochs or options.nsamples or options.max_minutes
    minutes = options.max_minutes or (CPU_MINUTES if cpu and not bounded else None)
    save_minutes = options.save_minutes
    if save_minutes is None:
        save_minutes = min(10.0, minutes / 8) if minutes else 10.0
    few = cpu and minutes and not (options.steps or options.epochs)
    tokens, hidden_size = TOKENS[found.train_weights if cpu else "cuda"], found.config.get_text_config().hidden_size
    return Settled(
        asked=options,
        precision=precision,
        method=found.method,
        train_weights=found.train_weights,
        teacher=found.teacher_name,
        data=found.data,
        train_seq_len=found.train_length,
        eval_data=found.eval_data or "none",
        max_seq_len=found.eval_length,
        device=device,
        max_minutes=minutes,
        save_minutes=save_minutes,
        nsamples=options.nsamples or (CPU_WINDOWS if few else None),
        epochs=None if options.steps else options.epochs or 2,
        train_batch_size=options.train_batch_size or max(1, tokens // found.train_length),
        learning_rate=options.learning_rate or RATES[found.train_weights] / math.sqrt(hidden_size),
    )


def _picked(options: RecoverOptions) -> str:
    """Return cpu or cuda, or one GPU by its number: the same in every process of a launcher. UsageError without it."""
    numbered, rank = options.device.startswith("cuda:"), os.environ.get(RANK)
    if numbered and rank:
        raise UsageError(f"`device` {options.device} is for one process; a launcher numbers the GPUs itself: give cuda")
    device = loading.pick_device(f"cuda:{rank}" if rank and options.device == "cuda" else options.device)
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"`device` {options.device}: training takes cpu or cuda")
    return options.device if numbered else device.type
