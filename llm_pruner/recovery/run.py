"""Recovery, in a straight line.

pruned checkpoint → teacher, texts → perplexity → training (kept in --work_dir, goes on there) → merged → perplexity
→ staged, verified, published → report
"""

import math
import os
from collections.abc import Sequence
from dataclasses import replace

from llm_pruner.config.recover import RecoverOptions, validate
from llm_pruner.console import is_main, quiet, say
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
from llm_pruner.recovery.adapters import check_installed, with_adapters
from llm_pruner.recovery.examples import training_examples, windows
from llm_pruner.recovery.losses import weights_of
from llm_pruner.recovery.outcome import outcome
from llm_pruner.recovery.sources import Sources
from llm_pruner.recovery.train import train
from llm_pruner.recovery.unfinished import clear, go_on, key_of, outputs

PROGRAM = "llm-pruner recover"
TOKENS = {"full": 1024, "lora": 2048, "cuda": 8192}  # of a batch by default: on a CPU by what learns, on a GPU
CPU_MINUTES, CPU_WINDOWS = 2.0, 4096  # by default, of training and of its text
SCORED = 4_096  # tokens that perplexity over time is measured on
RATES = {"full": 0.0064, "lora": 0.0192}  # peak learning rate × √hidden_size: AMP's 3e-4 for LoRA at 4096


def run(options: RecoverOptions, argv: Sequence[str] = (), program: str = PROGRAM) -> RecoverReport | None:
    """Recover a checkpoint by training, and save it.

    Args:
        options: The command's.
        argv: The arguments as they were typed, behind `program`.
        program: The command as it was typed.

    Returns:
        The report; None in all processes of a launcher but the first.

    Raises:
        PrunerError: With the exit code of what failed.
    """
    validate(options)
    stopwatch = Stopwatch()
    found = sources.find(options)
    options = found.options
    target, folder = outputs(options, found)
    exporters = exporters_called(options.export)
    if options.method == "distil":
        weights_of(options)  # names losses that are not there
    if options.train_weights == "lora":
        check_installed()
    quiet()
    precision, options = _settled(options, found.config)
    found = replace(found, options=options)
    say("options: " + ", ".join(f"{k}={v}" for k, v in options.asdict().items() if v is not None and v is not False))

    import torch
    from accelerate import PartialState

    with stopwatch("data"):
        tokenizer = load_tokenizer(loading.fetch(found.student, options.revision, weights=False))
        examples = training_examples(
            options.data, options.max_seq_len, tokenizer, found.config.vocab_size, options.nsamples, options.seed
        )
        scored, evaluation = windows_of(found.eval_data, options.model, tokenizer, found.config, found.eval_length)
        measurement = Measurement(scored, evaluation)
    say(f"training data: {len(examples)} windows or records, {examples.tokens:,} tokens of {options.data}")
    with stopwatch("load"):
        student_folder = loading.fetch(found.student, options.revision)
        model = loading.load_model(student_folder, found.config, "auto", _device(options))
    stored, finite = model.dtype, checkpoint.finite_logits(model)
    check_disk(target, size_of(model).bytes)
    before = measurement.of(model, tokenizer, "before", stopwatch) if is_main() else Scores()
    teacher = _teacher(found, options, precision, stopwatch)
    if options.train_weights == "full" or precision == "no":
        _cast(model, torch.float32)
    if options.train_weights == "lora":
        model = with_adapters(model, options)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)

    with PartialState(cpu=options.device == "cpu").main_process_first():
        resumed = go_on(folder, key_of(found, options, student_folder))
    few = windows(scored[: max(1, SCORED // scored.shape[1])]) if scored is not None else None
    with stopwatch("train"):
        trainer, pace = train(model, teacher, examples, few, found.layers, options, folder, precision)
    with stopwatch("merge"):
        model = _result(trainer, found, options, student_folder)
    training = {
        "windows": len(examples),
        "steps": trainer.state.global_step,
        "minutes": pace.seconds / 60,
        "processes": trainer.args.world_size,
        "precision": precision,
        "trainable_parameters": trainable,
        "resumed_at": resumed,
    }
    del trainer, teacher
    if not is_main():
        return None
    _cast(model.eval(), stored)
    scores = compared(before, measurement.of(model, tokenizer, "after", stopwatch))

    def report() -> RecoverReport:
        told = conditions(options, stopwatch.seconds, argv, program)
        return outcome(found, model, scores, evaluation, training, examples.tokens, pace.history, told)

    made = report()
    if made.recovered_share is not None:
        closed, dense = made.recovered_share, made.dense_perplexity
        say(f"recovered {closed:.0%} of the gap in log-perplexity to the dense model ({dense:.2f})")
    made = save(
        model, tokenizer, target, student_folder, report, finite=finite, overwrite=options.overwrite,
        stopwatch=stopwatch, export=exporters,
    )  # fmt: skip
    clear(folder)
    return made


def _settled(options: RecoverOptions, config) -> tuple[str, RecoverOptions]:
    """(precision, the options with every default decided)."""
    import torch

    cpu = options.device == "cpu" or not torch.cuda.is_available()
    if options.device == "cuda" and cpu:
        raise UsageError("--device cuda: there is no GPU that torch can use")
    precision = options.mixed_precision
    if precision == "auto":
        precision = "bf16" if (_has_amx() if cpu else torch.cuda.is_bf16_supported()) else "no"
    bounded = options.steps or options.epochs or options.nsamples or options.max_minutes
    minutes = options.max_minutes or (CPU_MINUTES if cpu and not bounded else None)
    save_minutes = options.save_minutes
    if save_minutes is None:
        save_minutes = min(10.0, minutes / 8) if minutes else 10.0
    hidden_size = config.get_text_config().hidden_size
    return precision, replace(
        options,
        device="cpu" if cpu else "cuda",
        max_minutes=minutes,
        nsamples=options.nsamples
        or (CPU_WINDOWS if cpu and minutes and not (options.steps or options.epochs) else None),
        epochs=None if options.steps else options.epochs or 2.0,
        batch_size=options.batch_size
        or max(1, TOKENS[options.train_weights if cpu else "cuda"] // options.max_seq_len),
        learning_rate=options.learning_rate or RATES[options.train_weights] / math.sqrt(hidden_size),
        save_minutes=save_minutes,
    )


def _has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware, which makes it several times as fast as float32."""
    import torch

    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def _device(options: RecoverOptions):
    import torch

    if options.device == "cpu":
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))


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
    from accelerate.utils import DistributedType

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
        from llm_pruner.recovery.adapters import merged

        model = merged(model)
    return model


def _cast(model, dtype) -> None:
    """The parameters in `dtype`; buffers, such as the frequencies of rotary embeddings, stay as they are."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
