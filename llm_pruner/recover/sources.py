"""What a recovery starts from: the pruned checkpoint, what its report.json says, and so the teacher and the texts."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from llm_pruner import data, loading
from llm_pruner.errors import PrunerError, UsageError
from llm_pruner.recover.options import RecoverOptions
from llm_pruner.console import say

TRAINING_LENGTH, EVALUATION_LENGTH = 512, 4096  # tokens per window where nothing else says


@dataclass(frozen=True)
class Sources:
    """Folders and configurations of the student and, for distillation, the teacher; `options` with what was found."""

    student: str
    config: object
    teacher: str | None
    teacher_config: object | None
    report: dict | None  # the student's report.json
    options: RecoverOptions
    eval_data: str | None
    eval_length: int

    @property
    def layers(self) -> list[int]:
        """The teacher's layer that each of the student's layers was."""
        kept = ((self.report or {}).get("layers") or {}).get("kept")
        return list(kept or range(self.config.num_hidden_layers))


def find(options: RecoverOptions) -> Sources:
    """Resolves names and defaults. UsageError, RunError or PlanError as loading them would give."""
    student = loading.resolve(options.model)
    config = loading.load_config(student, options.revision, any_family=True)
    loading.check_dense(
        options.model, getattr(config, "quantization_config", None), "recover the model that it was made from"
    )
    report = report_of(student)
    options = _with_teacher(options, report)
    teacher = teacher_config = None
    if options.method == "distil":
        teacher = loading.resolve(options.teacher)
        teacher_config = loading.load_config(teacher, any_family=True)
        if teacher_config.vocab_size != config.vocab_size:
            raise UsageError(
                f"teacher {options.teacher} knows {teacher_config.vocab_size} tokens, {options.model} "
                f"{config.vocab_size}; distillation compares logits, so give the model that was pruned"
            )
    longest = getattr(config, "max_position_embeddings", None) or EVALUATION_LENGTH
    scored = (report or {}).get("evaluation") or {}
    used = [((report or {}).get(phase) or {}).get("data") for phase in ("training", "calibration")]
    usual = "demo" if "demo" in (options.model, options.teacher, base_of(report)) else "wikitext2"
    eval_data = options.eval_data or scored.get("data") or usual
    eval_length = options.max_seq_len or scored.get("max_seq_len") or EVALUATION_LENGTH
    known = next(filter(None, used), usual)
    options = replace(
        options,
        data=options.data or known,
        max_seq_len=min(options.max_seq_len or min(eval_length, TRAINING_LENGTH), longest),
        eval_data=eval_data,
    )
    data.check_name(options.data, data.CALIBRATION, "training")
    if eval_data != "none":
        data.check_name(eval_data)
    return Sources(
        student, config, teacher, teacher_config, report, options,
        None if eval_data == "none" else eval_data, min(eval_length, longest),
    )  # fmt: skip


def report_of(folder: str) -> dict | None:
    """The report.json in a checkpoint's folder, None where there is none of this program."""
    try:
        found = json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "llm_pruner" in (found.get("versions") or {}) else None


def base_of(report: dict | None) -> str | None:
    """The model that was pruned in the first place, by the chain of reports."""
    while report and report.get("made_from"):
        report = report["made_from"]
    return (report or {}).get("model")


def _with_teacher(options: RecoverOptions, report: dict | None) -> RecoverOptions:
    """The method and what it needs: distillation where a teacher is known, else LoRA."""
    base = base_of(report)
    if options.method == "lora":
        return replace(options, train_weights="lora")
    if options.method is None and not options.teacher:
        try:
            loading.load_config(loading.resolve(base or ""), any_family=True)
        except PrunerError:
            say(f"note: method lora, because no dense model to learn from is at hand (report.json names {base})")
            return replace(options, method="lora", train_weights="lora")
    if not (options.teacher or base):
        raise UsageError(f"distil learns from the dense model, and {options.model} has no report.json; give --teacher")
    return replace(
        options, method="distil", teacher=options.teacher or base, train_weights=options.train_weights or "full"
    )
