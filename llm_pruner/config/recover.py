"""The options of `recover`. Imports nothing heavy."""

from typing import Any

from llm_pruner.config.groups import (
    DATA,
    METHOD,
    MODEL,
    OUTPUT,
    TRAINING,
    DeviceOptions,
    EvaluationTextOptions,
    MethodOptions,
    ModelOptions,
    RevisionOptions,
    RunOptions,
    SavingOptions,
    TextOptions,
    WorkOptions,
)
from llm_pruner.config.limits import MOST_TOKENS
from llm_pruner.config.options import check_values, command_options, option, resolved
from llm_pruner.errors import UsageError

PROGRAM = "llm-pruner recover"
TOP_K = 256


@command_options(
    model={"help": "the pruned checkpoint: local folder or hub id"},
    device={
        "help": "cpu, cuda, cuda:1 …; auto takes a GPU if there is one; under `accelerate launch` the launcher decides"
    },
    method={
        "help": "distil: learn the dense model's logits; lora: learn the text, by adapters; default: distil where "
        "there is a teacher, else lora", "choices": ("lora", "distil"),
    },
    epochs={"help": "passes over the training data; default: 2, if the time allows", "group": TRAINING, "least": 1},
    nsamples={"help": "largest number of windows or records to train on; default: all", "group": DATA, "most": None},
    eval_data={
        "help": "text to score on: wikitext2, demo, a text file, or none; default: the text that the checkpoint was "
        "scored on"
    },
    max_seq_len={
        "default": None,
        "help": "tokens per evaluation window, at most max_position_embeddings; default: as many as the checkpoint "
        "was scored with",
    },
    save_model={"help": "folder for the checkpoint; default: <model>-recovered"},
    work_dir={"help": "folder for unfinished training, to continue from; default: <save_model>.unfinished"},
)  # fmt: skip
class RecoverOptions(
    RunOptions,
    WorkOptions,
    SavingOptions,
    EvaluationTextOptions,
    TextOptions,
    MethodOptions,
    DeviceOptions,
    RevisionOptions,
    ModelOptions,
):
    """Every option of `recover`, by its flag's name."""

    teacher: str | None = option(
        None,
        MODEL,
        "distil: the dense model to learn from; default: the one that the checkpoint's report.json names",
        common=True,
    )
    teacher_cache: str | None = option(
        None, MODEL, "distil: folder that keeps the teacher's likeliest next tokens of every training window, so that "
        "it runs once for several epochs, students and runs", "DIR",
    )  # fmt: skip
    teacher_top_k: int = option(
        TOP_K, MODEL, "teacher_cache: tokens that are kept of each distribution; all others count as one", "K",
        kind=int, least=1,
    )  # fmt: skip
    mixed_precision: str = option(
        "auto",
        MODEL,
        "precision of computing over float32 weights; auto takes bf16 on a GPU or CPU (AMX, AVX512-BF16) that has it",
        choices=("auto", "no", "bf16", "fp16"),
    )
    train_weights: str | None = option(
        None,
        METHOD,
        "weights that learn: all, or those of adapters, which are merged at the end; default: full for distil",
        choices=("full", "lora"),
    )
    lora_r: int = option(32, METHOD, "rank of the adapters", "R", least=1, kind=int)
    lora_alpha: float = option(
        64.0, METHOD, "alpha of the adapters, whose outputs are scaled by alpha / r", least=0, kind=float
    )
    lora_dropout: float = option(0.0, METHOD, "dropout on the inputs of the adapters", "P", least=0, kind=float)
    lora_targets: str | None = option(
        None,
        METHOD,
        "projections that get an adapter, such as q_proj,v_proj; default: all of the decoder layers",
        "NAME,…",
    )
    temperature: float = option(
        1.0, METHOD, "distil: temperature of the teacher's and the student's distributions", "T", least=0.01, kind=float
    )
    ce_weight: float = option(
        0.0,
        METHOD,
        "distil: weight of the text's cross-entropy beside the loss against the teacher",
        "W",
        least=0,
        kind=float,
    )
    hidden_weight: float = option(
        0.0,
        METHOD,
        "distil: weight of the distance between the hidden states of teacher and student",
        "W",
        least=0,
        kind=float,
    )
    losses: str | None = option(
        None, METHOD, "distil: registered losses, such as those of other packages, with their weights", "NAME=W,…"
    )
    data: str | None = option(
        None,
        DATA,
        "text to learn: wikitext2, c4, alpaca, instructions, demo, or a file of text or JSON records; default: the "
        "calibration text, of several the one of most windows",
        "NAME|FILE",
        common=True,
    )
    train_seq_len: int | None = option(
        None, DATA, "tokens per training window, at most max_position_embeddings; default: 512, or fewer where "
        "`max_seq_len` is", "N", kind=int, least=2, most=MOST_TOKENS,
    )  # fmt: skip
    train_batch_size: int | None = option(
        None, TRAINING, "windows per device and forward pass; default: 1024 tokens (lora 2048) on a CPU, 8192 on a GPU",
        "N", kind=int, least=1,
    )  # fmt: skip
    steps: int | None = option(
        None, TRAINING, "number of optimiser steps, instead of epochs", "N", least=1, kind=int, common=True
    )
    max_minutes: float | None = option(
        None,
        TRAINING,
        "time limit for training, by which the learning rate has decayed; default: 2 on a CPU, none on a GPU",
        "M",
        least=0,
        kind=float,
        common=True,
    )
    learning_rate: float | None = option(
        None,
        TRAINING,
        "peak learning rate; default: 0.0064 / √hidden_size, for adapters 0.0192 / √hidden_size",
        "LR",
        least=0,
        kind=float,
        common=True,
    )
    warmup: float = option(
        0.1,
        TRAINING,
        "share of the training in which the learning rate rises, before it falls as a cosine",
        least=0,
        kind=float,
    )
    weight_decay: float = option(0.0, TRAINING, "weight decay of AdamW", least=0, kind=float)
    gradient_accumulation_steps: int = option(1, TRAINING, "forward passes per optimiser step", "N", least=1, kind=int)
    gradient_checkpointing: bool = option(
        False, TRAINING, "compute activations again in the backward pass: less memory, more time", kind=bool
    )
    save_minutes: float | None = option(
        None,
        OUTPUT,
        "minutes between saves of the unfinished training; default: an eighth of max_minutes, at most 10",
        "M",
        least=0,
        kind=float,
    )


def resolve(flags: dict[str, Any], yaml_file: str | None = None) -> RecoverOptions:
    """Return the options: defaults < YAML < flags. UsageError for anything that cannot be meant."""
    options = resolved(RecoverOptions, flags, yaml_file)
    validate(options)
    return options


def validate(options: RecoverOptions) -> None:
    """Raise a UsageError for values out of range and for options that contradict each other."""
    check_values(options)
    if not options.model:
        raise UsageError("no model: give `model`, the pruned checkpoint")
    if options.method == "lora":
        if options.teacher:
            raise UsageError("`teacher` belongs to `method=distil`; leave it out, or what names lora")
        if options.train_weights == "full":
            raise UsageError("`method=lora` trains adapters; `train_weights=full` goes with `method=distil`")
        plainly = {"temperature": 1.0, "ce_weight": 0.0, "hidden_weight": 0.0, "teacher_cache": None}
        for name, plain in plainly.items():
            if getattr(options, name) != plain:
                raise UsageError(f"`{name}` belongs to `method=distil`; leave it out")
    if options.teacher_top_k != TOP_K and not options.teacher_cache:
        raise UsageError("`teacher_top_k` belongs to `teacher_cache`; give that, too")
    if options.hidden_weight and options.teacher_cache:
        raise UsageError("`hidden_weight` needs the teacher, and `teacher_cache` has no hidden states; leave out one")
    if options.epochs is not None and options.steps is not None:
        raise UsageError("`epochs` and `steps` both set the length of training; give one of them (and `max_minutes`)")
    for name in ("max_minutes", "learning_rate", "lora_alpha"):
        if getattr(options, name) == 0:
            raise UsageError(f"{name}: 0 would train nothing; it must be above 0")
    for name in ("lora_dropout", "warmup"):
        if not getattr(options, name) < 1:
            raise UsageError(f"{name}: {getattr(options, name)} must be a number with 0 <= {name} < 1")
