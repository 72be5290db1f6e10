"""What a recovery starts from: the pruned checkpoint, what its report.json says, and so the teacher and the texts."""

import os
from dataclasses import dataclass
from typing import Any

from llm_pruner.calibration.mixtures import SELF
from llm_pruner.calibration.texts import CALIBRATION, check_name
from llm_pruner.config.recover import RecoverOptions
from llm_pruner.console import log
from llm_pruner.errors import PrunerError, UsageError, shown
from llm_pruner.files import checkpoint_digest, fingerprint
from llm_pruner.model import loading
from llm_pruner.model.checkpoint_files import weight_files
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.output import lineage
from llm_pruner.output.reports import CheckpointReport, PruneReport, RecoverReport, SparsifyReport
from llm_pruner.vocabulary.cut import matching_tokens

# tokens per window where nothing else says
TRAINING_LENGTH, EVALUATION_LENGTH = 512, 4096


@dataclass(frozen=True)
class Sources:
    """What a recovery starts from, and what follows from that.

    Attributes:
        student: Its folder.
        config: The student's.
        report: The student's.
        method: distil or lora.
        train_weights: full or lora.
        teacher_name: As it was given, or as report.json names it.
        teacher: Its folder.
        teacher_config: The teacher's.
        teacher_tokens: The teacher's ids of the student's tokens, where that has fewer; None where they are the same.
        data: The text, or records, to train on.
        train_length: Tokens of a window of training.
        eval_data: The text to score on; None for none.
        eval_length: Tokens of a window of it.
    """

    student: str
    config: Any
    report: CheckpointReport | None
    method: str
    train_weights: str
    teacher_name: str | None
    teacher: str | None
    teacher_config: Any
    teacher_tokens: list[int] | None
    data: str
    train_length: int
    eval_data: str | None
    eval_length: int

    @property
    def layers(self) -> list[int]:
        """The teacher's layer that each of the student's layers was; the same ones where that is not known."""
        count = self.config.num_hidden_layers
        most = self.teacher_config.num_hidden_layers if self.teacher_config else count
        kept = lineage.layers_of(self.report, count)
        return kept if kept and max(kept) < most != count else list(range(count))

    def teacher_digest(self, weights: bool = True) -> str:
        """Return what tells the teacher from others.

        Args:
            weights: Whether those of a hub model are fetched too.
        """
        assert self.teacher, "there is one"
        return checkpoint_digest(self.teacher, loading.fetch(self.teacher, weights=weights))


def find(options: RecoverOptions) -> Sources:
    """Resolve names and defaults. UsageError, RunError or PlanError as loading them would give."""
    student = loading.resolve(options.model)
    config = loading.load_config(student, options.revision, any_family=True)
    loading.check_dense(
        options.model, getattr(config, "quantization_config", None), "recover the model that it was made from"
    )
    folder = loading.fetch(student, options.revision, weights=False)
    report = lineage.report_of(folder)
    method, name, train_weights = _method_of(options, report)
    teacher = teacher_config = tokens = None
    if name:
        teacher = loading.resolve(name)
        teacher_config = loading.load_config(teacher, any_family=True)
        teacher_folder = loading.fetch(teacher, weights=False)
        if teacher_config.vocab_size != config.vocab_size:
            tokens = _tokens_of_teacher(options, name, folder, teacher_folder, (config, teacher_config))
        else:
            _check_teacher(options, name, student, folder, teacher, teacher_folder)
        _announce(name, report, lineage.report_of(teacher_folder))
    longest = getattr(config, "max_position_embeddings", None) or EVALUATION_LENGTH
    scored = report.evaluation if report else None
    usual = "demo" if "demo" in (options.model, name, lineage.base_of(report)) else "wikitext2"
    eval_data = options.eval_data or (scored.data if scored else usual)
    eval_length = options.max_seq_len or (scored.max_seq_len if scored else EVALUATION_LENGTH)
    train_length = options.train_seq_len or min(eval_length, TRAINING_LENGTH)
    text = options.data or _text_of(report) or usual
    check_name(text, CALIBRATION, "training")
    if eval_data != "none":
        check_name(eval_data)
    return Sources(
        student, config, report, method, train_weights, name, teacher, teacher_config, tokens, text,
        min(train_length, longest), None if eval_data == "none" else eval_data, min(eval_length, longest),
    )  # fmt: skip


def _text_of(report: CheckpointReport | None) -> str | None:
    """The text that the checkpoint was trained or calibrated on; of several the one of which most windows were.

    Where it was calibrated on no text but the model's own, the first one whose tokens were counted.
    """
    if isinstance(report, RecoverReport):
        return report.training.data
    used = report.calibration if isinstance(report, PruneReport | SparsifyReport) else None
    if used and not used.sources and used.data != SELF:
        return used.data
    if texts := [own for own in (used.sources if used else None) or () if own.data != SELF]:
        return max(texts, key=lambda own: own.windows).data
    counted = report.vocabulary if isinstance(report, PruneReport) else None
    return counted.data[0] if counted and counted.data else None


def _tokens_of_teacher(
    options: RecoverOptions, name: str, folder: str, teacher_folder: str, configs: tuple[Any, Any]
) -> list[int]:
    """The teacher's ids of the student's tokens, where its vocabulary is that of the student and more.

    UsageError where it is not: distillation compares logits of the same tokens.
    """
    config, teachers = configs
    try:
        own, other = (load_tokenizer(one) for one in (folder, teacher_folder))
        found = matching_tokens(own, other) if own and other and teachers.vocab_size > config.vocab_size else None
    except PrunerError:
        found = None
    if found is None or len(found) != config.vocab_size or max(found) >= teachers.vocab_size:
        raise UsageError(
            f"teacher {name} knows {teachers.vocab_size} tokens, {options.model} {config.vocab_size}, and not all of "
            "these are among those; distillation compares logits, so give the model that was pruned"
        )
    log(f"note: {name} teaches the {len(found):,} of its {teachers.vocab_size:,} tokens that {options.model} has")
    return found


def _check_teacher(
    options: RecoverOptions, name: str, student: str, folder: str, teacher: str, teacher_folder: str
) -> None:
    """Raise a UsageError when the teacher is the student itself, or means other things by its tokens.

    Args:
        options: For the student's name and revision.
        name: The teacher's.
        student: What `options.model` resolves to.
        folder: Where the student's small files are.
        teacher: What `name` resolves to.
        teacher_folder: Where the teacher's small files are.
    """
    local = os.path.isdir(student) and os.path.isdir(teacher)
    if student == teacher and not options.revision or local and _same_weights(student, teacher):
        raise UsageError(
            f"teacher {name} holds the same weights as {options.model}, so there is nothing to learn; "
            "give the dense model that was pruned"
        )
    try:
        own, other = (load_tokenizer(one) for one in (folder, teacher_folder))
    except PrunerError as error:
        log(f"note: whether {name} and {options.model} have the same tokens is not known: {error}")
        return
    # a folder of weights alone; the student's is asked for later
    if own is None or other is None:
        return
    theirs = {number: token for token, number in other.get_vocab().items()}
    special = set(own.all_special_tokens)
    for token, number in sorted(own.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(number) != token and not (number not in theirs and token in special):
            raise UsageError(
                f"teacher {name} has other tokens than {options.model}: token {number} is "
                f"{shown(theirs[number]) if number in theirs else 'none'} in the one, {shown(token)} in the other; "
                "give the dense model that was pruned"
            )


def _same_weights(one: str, other: str) -> bool:
    if os.path.samefile(one, other):
        return True
    try:
        files = [weight_files(folder)[1] for folder in (one, other)]
        sizes = [[path.stat().st_size for path in own] for own in files]
        return sizes[0] == sizes[1] and [fingerprint(path) for path in files[0]] == [fingerprint(p) for p in files[1]]
    except (PrunerError, OSError):
        # loading them says why
        return False


def _announce(name: str, report: CheckpointReport | None, teachers: CheckpointReport | None) -> None:
    """Says whom the student learns from, which models between them are skipped, and if the teacher is not dense.

    Args:
        name: The teacher's.
        report: The student's.
        teachers: The teacher's own, if it has one.
    """
    base, chain = lineage.base_of(report), lineage.steps(report)
    between = [step.model for step in chain[1:]] if name == base else []
    skipped = f"; the models between it and this one are skipped: {', '.join(between)}" if between else ""
    log(f"learning from {name}{skipped}")
    if teachers and (first := lineage.base_of(teachers)) != name:
        log(f"note: {name} is not a dense model, it was made from {first or 'another one'}")


def _method_of(options: RecoverOptions, report: CheckpointReport | None) -> tuple[str, str | None, str]:
    """(the method, the teacher's name, what learns): distillation where a teacher is known, else LoRA."""
    base = lineage.base_of(report)
    if options.method == "lora":
        return "lora", None, "lora"
    if options.method is None and not options.teacher and not _is_at_hand(base):
        log(f"note: method lora, because no dense model to learn from is at hand (report.json names {base})")
        return "lora", None, "lora"
    teacher = options.teacher or base
    if not teacher:
        raise UsageError(f"distil learns from the dense model, and {options.model} has no report.json; give `teacher`")
    return "distil", teacher, options.train_weights or "full"


def _is_at_hand(name: str | None) -> bool:
    if not name:
        return False
    try:
        return bool(loading.load_config(loading.resolve(name), any_family=True))
    except PrunerError:
        return False
