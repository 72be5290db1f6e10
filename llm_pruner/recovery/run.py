"""Recovery, in a straight line.

pruned checkpoint → teacher, texts → perplexity → training (kept in work_dir, goes on there) → merged → perplexity
→ staged, verified, published → report
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from llm_pruner.config.recover import PROGRAM, RecoverOptions, validate
from llm_pruner.console import is_main, log, quiet
from llm_pruner.errors import RunError, UsageError
from llm_pruner.evaluation.scores import Measurement, Scores, compared, windows_of
from llm_pruner.model import loading
from llm_pruner.model.size import size_of
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output import checkpoint
from llm_pruner.output.conditions import Stopwatch, conditions
from llm_pruner.output.exporters import exporters_called
from llm_pruner.output.places import check_disk
from llm_pruner.output.reports import RecoverReport
from llm_pruner.output.saving import save
from llm_pruner.recovery import sources
from llm_pruner.recovery.adapters import check_installed, merged, with_adapters
from llm_pruner.recovery.examples import training_examples, windows
from llm_pruner.recovery.losses import weights_of
from llm_pruner.recovery.outcome import outcome
from llm_pruner.recovery.sources import Sources
from llm_pruner.recovery.train import train
from llm_pruner.recovery.unfinished import clear, go_on, key_of, outputs

TOKENS = {"full": 1024, "lora": 2048, "cuda": 8192}  # of a batch by default: on a CPU by what learns, on a GPU
RANK = "LOCAL_RANK"  # where a launcher numbers its processes
CPU_MINUTES, CPU_WINDOWS = 2.0, 4096  # by default, of training and of its text
SCORED = 4_096  # tokens that perplexity over time is measured on
RATES = {"full": 0.0064, "lora": 0.0192}  # peak learning rate × √hidden_size: AMP's 3e-4 for LoRA at 4096


def recover(options: RecoverOptions, argv: Sequence[str] = (), program: str = PROGRAM) -> RecoverReport | None:
    """Recover a checkpoint by training, and save it.

    Args:
        options: What to train, and how.
        argv: The arguments of the command as they were typed, behind `program`.
        program: The command, for the report.

    Returns:
        The report; None in all processes of a launcher but the first.

    Raises:
        PrunerError: Whatever fails, with its exit code.
    """
    validate(options)
    stopwatch = Stopwatch()
    sources_ = sources.find(options)
    target, folder = outputs(options, sources_)
    exporters = exporters_called(options.export)
    _check_method(sources_.options)
    quiet()
    precision, asked = _settled(sources_.options, sources_.config)
    found = replace(sources_, options=asked)
    log("options: " + ", ".join(f"{k}={v}" for k, v in asked.asdict().items() if v is not None and v is not False))
    assert asked.data and asked.train_seq_len, "the sources have settled them"
    with stopwatch("data"):
        tokenizer = load_tokenizer(loading.fetch(found.student, asked.revision, weights=False))
        examples = training_examples(
            asked.data, asked.train_seq_len, tokenizer, found.config.vocab_size, asked.nsamples, asked.seed
        )
        scored, evaluation = windows_of(found.eval_data, asked.model, tokenizer, found.config, found.eval_length)
        measurement = Measurement(scored, evaluation)
    log(f"training data: {len(examples)} windows or records, {examples.tokens:,} tokens of {asked.data}")
    with stopwatch("load"):
        student_folder = loading.fetch(found.student, asked.revision)
        student = loading.load_model(student_folder, found.config, "auto", _device(asked))
    stored, finite = student.dtype, checkpoint.finite_logits(student)
    check_disk(target, size_of(student).bytes)
    before = measurement.of(student, tokenizer, "before", stopwatch) if is_main() else Scores()
    trained = _trained(found, student, student_folder, examples, scored, folder, precision, stopwatch)
    del student
    if not is_main():
        return None
    _cast(trained.model.eval(), stored)
    scores = compared(before, measurement.of(trained.model, tokenizer, "after", stopwatch))

    def report() -> RecoverReport:
        told = conditions(asked, stopwatch.seconds, argv, program)
        return outcome(
            found, trained.model, scores, evaluation, trained.training, examples.tokens, trained.history, told
        )

    made = report()
    _announce(made)
    made = save(
        trained.model, tokenizer, target, student_folder, report, finite=finite, overwrite=asked.overwrite,
        stopwatch=stopwatch, export=exporters,
    )  # fmt: skip
    clear(folder)
    return made


def _announce(made: RecoverReport) -> None:
    if made.recovered_share is not None:
        closed, dense = made.recovered_share, made.dense_perplexity
        log(f"recovered {closed:.0%} of the gap in log-perplexity to the dense model ({dense:.2f})")


def _check_method(options: RecoverOptions) -> None:
    """UsageError for losses that are not there, RunError without PEFT where adapters are to learn."""
    if options.method == "distil":
        weights_of(options)
    if options.train_weights == "lora":
        check_installed()


@dataclass
class _Trained:
    """The trained model, and what a report tells of the training."""

    model: Any
    training: dict[str, Any]
    history: list[Any]


def _trained(
    found: Sources, student, student_folder: str, examples, scored, folder: Path, precision: str, stopwatch: Stopwatch
) -> _Trained:
    options = found.options
    teacher, device = _teacher(found, options, precision, stopwatch), _device(options)
    if options.train_weights == "full" or precision == "no":
        _cast(student, torch.float32)
    model = with_adapters(student, options) if options.train_weights == "lora" else student
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with PartialState(cpu=device.type == "cpu").main_process_first():
        resumed = go_on(folder, key_of(found, options, student_folder))
    few = windows(scored[: max(1, SCORED // scored.shape[1])]) if scored is not None else None
    with stopwatch("train"):
        trainer, schedule = train(model, teacher, examples, few, found.layers, options, folder, precision, device)
    with stopwatch("merge"):
        result = _result(trainer, found, options, student_folder)
    training = {
        "windows": len(examples),
        "steps": trainer.state.global_step,
        "minutes": schedule.seconds / 60,
        "processes": trainer.args.world_size,
        "precision": precision,
        "trainable_parameters": trainable,
        "resumed_at": resumed,
    }
    return _Trained(result, training, schedule.history)


def _settled(options: RecoverOptions, config) -> tuple[str, RecoverOptions]:
    """(precision, the options with every default decided)."""
    device = _picked(options)
    cpu = device == "cpu"
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if (_has_amx() if cpu else torch.cuda.is_bf16_supported()) else "no"
    bounded = options.steps or options.epochs or options.nsamples or options.max_minutes
    minutes = options.max_minutes or (CPU_MINUTES if cpu and not bounded else None)
    save_minutes = options.save_minutes
    if save_minutes is None:
        save_minutes = min(10.0, minutes / 8) if minutes else 10.0
    hidden_size = config.get_text_config().hidden_size
    assert options.train_weights and options.train_seq_len, "the sources have settled them"
    return precision, replace(
        options,
        device=device,
        max_minutes=minutes,
        nsamples=options.nsamples
        or (CPU_WINDOWS if cpu and minutes and not (options.steps or options.epochs) else None),
        epochs=None if options.steps else options.epochs or 2,
        train_batch_size=options.train_batch_size
        or max(1, TOKENS[options.train_weights if cpu else "cuda"] // options.train_seq_len),
        learning_rate=options.learning_rate or RATES[options.train_weights] / math.sqrt(hidden_size),
        save_minutes=save_minutes,
    )


def _has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware, which makes it several times as fast as float32."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def _picked(options: RecoverOptions) -> str:
    """Return cpu or cuda, or one GPU by its number: the same in every process of a launcher. UsageError without it."""
    numbered, rank = options.device.startswith("cuda:"), os.environ.get(RANK)
    if numbered and rank:
        raise UsageError(f"`device` {options.device} is for one process; a launcher numbers the GPUs itself: give cuda")
    device = loading.pick_device(f"cuda:{rank}" if rank and options.device == "cuda" else options.device)
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"`device` {options.device}: training takes cpu or cuda")
    return options.device if numbered else device.type


def _device(options: RecoverOptions) -> torch.device:
    """The device of this process."""
    device = torch.device(options.device)
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", int(os.environ.get(RANK, 0)))
    return device


def _teacher(found: Sources, options: RecoverOptions, precision: str, stopwatch):
    """The dense model, frozen, in the checkpoint's dtype on a GPU and in float32 on a CPU; None without one."""
    if not found.teacher:
        return None
    with stopwatch("load"):
        dtype = "float32" if precision == "no" else "auto"
        folder = loading.fetch(found.teacher)
        teacher = loading.load_model(folder, found.teacher_config, dtype, _device(options))
    return teacher.requires_grad_(False)


def _result(trainer, found: Sources, options: RecoverOptions, folder: str):
    """The trained model as an ordinary one, on every process that holds all of it."""
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # nor its autocast
    if trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all processes take part
        if not is_main():
            return None
        model = loading.load_model(folder, found.config, "float32", "cpu")
        if options.train_weights == "lora":
            model = with_adapters(model, options)
        missing = model.load_state_dict(state, strict=False).missing_keys
        if missing := [name for name in missing if "lm_head" not in name or not model.config.tie_word_embeddings]:
            raise RunError(f"the processes gathered no {missing[0]}; nothing was published")
    if options.train_weights == "lora":
        model = merged(model)
    return model


def _cast(model, dtype) -> None:
    """The parameters in `dtype`; buffers, such as the frequencies of rotary embeddings, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
