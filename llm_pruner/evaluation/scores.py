"""Perplexity and zero-shot scores of a model before and after a change: prune, recover and sparsify measure alike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_pruner.calibration.texts import check_name, usual_text
from llm_pruner.calibration.windows import described, evaluation_windows
from llm_pruner.console import log
from llm_pruner.errors import RunError
from llm_pruner.evaluation import zero_shot
from llm_pruner.evaluation.perplexity import bits_per_byte, perplexity
from llm_pruner.output.conditions import Stopwatch
from llm_pruner.output.reports import Evaluation, Measured


@dataclass(frozen=True)
class Scores:
    """Of one model; None where that was not measured."""

    perplexity: float | None = None
    zero_shot: dict[str, dict[str, Any]] | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True)
class Measurement:
    """What is measured of each model, and how.

    `windows` is a LongTensor [number, tokens] of the text that `evaluation` tells of, None for no perplexity;
    `bytes_per_token` is there where bits per byte are told, too; the other fields are options of `zero_shot`.
    """

    windows: Any = None
    evaluation: Evaluation | None = None
    tasks: Sequence[str] = ()
    batch_size: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    limit: int | None = None
    seed: int = 0
    bytes_per_token: float | None = None

    def of(self, model: Any, tokenizer: Any, side: str, stopwatch: Stopwatch) -> Scores:
        """Score a model.

        Args:
            model: A causal language model in evaluation mode.
            tokenizer: Its tokenizer, for tasks.
            side: "before" or "after", for the console and the stopwatch.
            stopwatch: Of the run.
        """
        value = answers = bits = None
        if self.windows is not None:
            with stopwatch(f"evaluate {side}"):
                value = perplexity(model, self.windows, self.batch_size, f"perplexity {side}")
            bits = bits_per_byte(value, self.bytes_per_token) if self.bytes_per_token else None
            log(
                f"perplexity {side}: {value:.2f}"
                + (f" per token, {bits:.4f} bits per byte" if bits is not None else "")
            )
        if self.tasks:
            with stopwatch(f"zero-shot {side}"):
                answers = zero_shot.zero_shot(
                    model, tokenizer, self.tasks, num_fewshot=self.num_fewshot, batch_size=self.batch_size,
                    apply_chat_template=self.apply_chat_template, limit=self.limit, seed=self.seed,
                )  # fmt: skip
        return Scores(value, answers, bits)


def compared(before: Scores, after: Scores) -> dict[str, Measured]:
    """Return the scores of a report: `perplexity`, `bits_per_byte` and `zero_shot`, of which a table is shown."""
    answers = {"before": before.zero_shot, "after": after.zero_shot}
    if any(answers.values()):
        log(zero_shot.table({side: own for side, own in answers.items() if own}))
    return {
        "perplexity": Measured(before.perplexity, after.perplexity),
        "zero_shot": Measured(before.zero_shot, after.zero_shot),
        "bits_per_byte": Measured(before.bits_per_byte, after.bits_per_byte),
    }


def text_to_score(name: str | None, model: str) -> str | None:
    """Return the name of the evaluation data; None for no text.

    Args:
        name: A data set, a file or `none`; None for the usual one.
        model: The name of the model that is scored.

    Raises:
        UsageError: There is no such data.
    """
    name = name or usual_text(model)
    if name == "none":
        return None
    check_name(name)
    return name


def windows_of(
    name: str | None, model: str, tokenizer: Any, config: Any, length: int, stride: int = 1
) -> tuple[Any, Evaluation | None]:
    """Return the token windows of a text, and what a report tells of them.

    Args:
        name: A data set or a file; None for no text.
        model: The model's name, for the message.
        tokenizer: Its tokenizer, or None.
        config: Its configuration.
        length: Tokens of a window, at most.
        stride: One window of so many is taken.

    Returns:
        LongTensor [windows, tokens] and the report's field; (None, None) for no text.

    Raises:
        RunError: The model has no tokenizer.
        UsageError: The text is too short.
    """
    if name is None:
        return None, None
    if tokenizer is None:
        raise RunError(f"{model} has no tokenizer, so no text can be scored; use `eval_data=none`")
    windows = evaluation_windows(name, tokenizer, config, length)[::stride]
    return windows, Evaluation(**described(name, windows))
