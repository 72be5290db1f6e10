"""Recovery, in a straight line.

pruned checkpoint → teacher, texts → the teacher's cache, if any → perplexity → training (kept in work_dir, goes on
there) → merged → perplexity → staged, verified, published → report
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
from llm_pruner.recovery.examples import Examples, training_examples, windows
from llm_pruner.recovery.losses import weights_of
from llm_pruner.recovery.outcome import outcome
from llm_pruner.recovery.settled import Settled, settle
from llm_pruner.recovery.sources import Sources
from llm_pruner.recovery.teacher_cache import TeacherCache, filled
from llm_pruner.recovery.train import train
from llm_pruner.recovery.unfinished import clear, go_on, key_of, outputs
from llm_pruner.vocabulary.cut import VocabularyCut

# tokens that perplexity over time is measured on
SCORED = 4_096


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
    found = sources.find(options)
    target, folder = outputs(options, found)
    exporters = exporters_called(options.export)
    _check_method(options, found)
    quiet()
    settled = settle(options, found)
    log("options: " + ", ".join(f"{k}={v}" for k, v in settled.asdict().items() if v is not None and v is not False))
    with stopwatch("data"):
        tokenizer = load_tokenizer(loading.fetch(found.student, options.revision, weights=False))
        examples = training_examples(
            settled.data, settled.train_seq_len, tokenizer, found.config.vocab_size, settled.nsamples, settled.seed
        )
        scored, evaluation = windows_of(found.eval_data, options.model, tokenizer, found.config, found.eval_length)
        measurement = Measurement(scored, evaluation)
    log(f"training data: {len(examples)} windows or records, {examples.tokens:,} tokens of {settled.data}")
    # before the student, so that no two models are in memory
    cache = _cached(found, settled, examples, stopwatch)
    with stopwatch("load"):
        student_folder = loading.fetch(found.student, options.revision)
        student = loading.load_model(student_folder, found.config, "auto", settled.torch_device)
    stored, finite = student.dtype, checkpoint.finite_logits(student)
    check_disk(target, size_of(student).bytes)
    before = measurement.of(student, tokenizer, "before", stopwatch) if is_main() else Scores()
    trained = _trained(found, settled, cache, student, student_folder, examples, scored, folder, stopwatch)
    del student
    if not is_main():
        return None
    _cast(trained.model.eval(), stored)
    scores = compared(before, measurement.of(trained.model, tokenizer, "after", stopwatch))

    def report() -> RecoverReport:
        told = conditions(settled, stopwatch.seconds, argv, program)
        return outcome(
            found, settled, trained.model, scores, evaluation, trained.training, examples.tokens, trained.history, told
        )

    made = report()
    _announce(made)
    made = save(
        trained.model, tokenizer, target, student_folder, report, finite=finite, overwrite=options.overwrite,
        stopwatch=stopwatch, export=exporters,
    )  # fmt: skip
    clear(folder)
    return made


def _announce(made: RecoverReport) -> None:
    if made.recovered_share is not None:
        closed, dense = made.recovered_share, made.dense_perplexity
        log(f"recovered {closed:.0%} of the gap in log-perplexity to the dense model ({dense:.2f})")


def _check_method(options: RecoverOptions, found: Sources) -> None:
    """UsageError for losses or a teacher that are not there, RunError without PEFT where adapters are to learn."""
    if found.method == "distil":
        weights_of(options)
    elif options.teacher_cache:
        raise UsageError("`teacher_cache` needs a dense model to learn from; give `teacher`")
    if found.train_weights == "lora":
        check_installed()


@dataclass
class _Trained:
    """The trained model, and what a report tells of the training."""

    model: Any
    training: dict[str, Any]
    history: list[Any]


def _trained(
    found: Sources, settled: Settled, cache: TeacherCache | None, student, student_folder: str, examples, scored,
    folder: Path, stopwatch: Stopwatch,
) -> _Trained:  # fmt: skip
    with stopwatch("load"):
        teacher = cache or _teacher(found, settled)
    if settled.train_weights == "full" or settled.precision == "no":
        _cast(student, torch.float32)
    model = with_adapters(student, settled.asked) if settled.train_weights == "lora" else student
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with PartialState(cpu=settled.torch_device.type == "cpu").main_process_first():
        resumed = go_on(folder, key_of(found, settled, student_folder))
    few = windows(scored[: max(1, SCORED // scored.shape[1])]) if scored is not None else None
    with stopwatch("train"):
        trainer, schedule = train(model, teacher, examples, few, found.layers, settled, folder)
    with stopwatch("merge"):
        result = _result(trainer, found, settled, student_folder)
    training = {
        "windows": len(examples),
        "steps": trainer.state.global_step,
        "minutes": schedule.seconds / 60,
        "processes": trainer.args.world_size,
        "precision": settled.precision,
        "trainable_parameters": trainable,
        "resumed_at": resumed,
    }
    return _Trained(result, training, schedule.history)


def _cached(found: Sources, settled: Settled, examples: Examples, stopwatch: Stopwatch) -> TeacherCache | None:
    """The teacher's complete cache, where one is asked for."""
    if not settled.asked.teacher_cache:
        return None
    with stopwatch("teacher cache"):
        return filled(found, settled, examples, lambda: _teacher(found, settled))


def _teacher(found: Sources, settled: Settled):
    """The dense model, frozen, in the checkpoint's dtype on a GPU and in float32 on a CPU; None without one."""
    if not found.teacher:
        return None
    dtype = "float32" if settled.precision == "no" else "auto"
    folder = loading.fetch(found.teacher)
    teacher = loading.load_model(folder, found.teacher_config, dtype, settled.torch_device)
    if found.teacher_tokens:
        teacher = VocabularyCut(found.teacher_config, tuple(found.teacher_tokens)).applied(teacher)
    return teacher.requires_grad_(False)


def _result(trainer, found: Sources, settled: Settled, folder: str):
    """The trained model as an ordinary one, on every process that holds all of it."""
    # nor its autocast
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        # all processes take part
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not is_main():
            return None
        model = loading.load_model(folder, found.config, "float32", "cpu")
        if settled.train_weights == "lora":
            model = with_adapters(model, settled.asked)
        missing = model.load_state_dict(state, strict=False).missing_keys
        if missing := [name for name in missing if "lm_head" not in name or not model.config.tie_word_embeddings]:
            raise RunError(f"the processes gathered no {missing[0]}; nothing was published")
    if settled.train_weights == "lora":
        model = merged(model)
    return model


def _cast(model, dtype) -> None:
    """The parameters in `dtype`; buffers, such as the frequencies of rotary embeddings, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
