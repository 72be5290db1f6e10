"""Which tokens stay: those that have to, then the most frequent ones of a text, each with all that it is made of."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from llm_pruner.calibration.mixtures import MIXTURES, SELF, parsed
from llm_pruner.calibration.records import Records
from llm_pruner.calibration.texts import CALIBRATION, LARGE, c4_documents, check_name, text_of, usual_text
from llm_pruner.console import log
from llm_pruner.errors import PlanError, UsageError, redact
from llm_pruner.model.axes import VOCAB
from llm_pruner.vocabulary.tokenizer_file import TokenizerFile

# of c4, whose shard has more
DOCUMENTS = 20_000
# what the number of tokens is a multiple of, where that is possible
MULTIPLE = 64
# characters of a text that are kept, to compare tokenizers on
SAMPLE = 2**20
# of a conversation, for the tokens of a chat template
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


@dataclass(frozen=True)
class Wanted:
    """How many tokens should stay. Without any number, those that a text is made of.

    Attributes:
        ratio: The share that goes.
        size: Their number.
        ids: Or the tokens themselves, ascending, as a plan has them.
    """

    ratio: float | None = None
    size: int | None = None
    ids: tuple[int, ...] | None = None

    def number(self, rows: int) -> int | None:
        """Return how many tokens of `rows` stay; None where the text tells."""
        if self.ratio is not None:
            return rounded_up(math.floor(rows * (1 - self.ratio) + 1e-6), rows)
        return self.size


def rounded_up(number: int, rows: int) -> int:
    """Return the next multiple of MULTIPLE, or the number itself where that is more than there are.

    Args:
        number: How many tokens stay.
        rows: How many there are.
    """
    multiple = math.ceil(number / MULTIPLE) * MULTIPLE
    return multiple if multiple <= rows else number


@dataclass(frozen=True)
class Counted:
    """Texts of which the tokens were counted.

    Attributes:
        names: What they are called.
        counts: {token: how often it is in them}.
        sample: A part of them.
    """

    names: tuple[str, ...]
    counts: Mapping[int, int]
    sample: str = ""

    def covered(self, kept: Iterable[int]) -> float:
        """Return which share of the texts' tokens stays. kept: ids of the tokens that stay."""
        stays = set(kept)
        return sum(count for number, count in self.counts.items() if number in stays) / sum(self.counts.values())


def texts_to_count(vocab_data: str | None, calibration_data: str | Sequence[str] | None, model: str) -> tuple[str, ...]:
    """Return the texts whose tokens are counted: all members of a mixture, but not the one that the model writes.

    That is written with the tokens that stay. Shares are of windows, and play no part here.

    Args:
        vocab_data: A data set, a file, or a named mixture; None for the calibration texts.
        calibration_data: As in `mixtures.parsed`; None for the usual text.
        model: The name of the model.

    Raises:
        UsageError: There is no such data set or file, or only text that the model writes.
    """
    if vocab_data:
        named, what = tuple(MIXTURES.get(vocab_data, (vocab_data,))), "vocabulary"
    else:
        named = tuple(source.data for source in parsed(calibration_data or usual_text(model)))
        what = "calibration"
    names = tuple(name for name in named if name != SELF)
    if not names:
        raise UsageError(
            f"the model writes the text called {SELF} with the tokens that stay, so it cannot tell which these are; "
            "give another text, `vocab_data=FILE`"
        )
    for name in names:
        check_name(name, (*CALIBRATION, *MIXTURES), what)
    return names


def counted(names: Sequence[str], tokenizer: Any) -> Counted:
    """Count the tokens of texts, of which all is read; of c4, DOCUMENTS documents.

    Args:
        names: Data sets or files.
        tokenizer: The model's.

    Raises:
        UsageError: There is no such data set or file, or no token in all of them.
        RunError: The hub does not give a data set.
    """
    counts, sample = Counter[int](), ""
    for name in names:
        for text in _texts(name, tokenizer):
            if not text.isspace():
                counts.update(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            sample = sample or text[:SAMPLE]
    if not counts:
        raise UsageError(f"vocabulary data {' '.join(names)} holds no token; give another text, `vocab_data=FILE`")
    return Counted(tuple(names), counts, sample)


def _texts(name: str, tokenizer: Any) -> Iterator[str]:
    if name == "c4":
        yield from islice(c4_documents("vocab_data"), DOCUMENTS)
        return
    found = text_of(name, "vocabulary")
    if isinstance(found, Records):
        yield found.text(tokenizer)
    elif found.is_large:
        # a word at a seam is read twice, or in two parts
        yield from (found.piece(start, LARGE) for start in range(0, len(found), LARGE))
    else:
        yield found.whole()


def template_tokens(tokenizer: Any) -> set[int]:
    """Return the tokens of a chat template's own text; none where there is no template, or it takes no such chat."""
    if not getattr(tokenizer, "chat_template", None):
        return set()
    try:
        text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    except Exception:
        # a template may refuse anything
        return set()
    return set(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def choose(
    file: TokenizerFile, counts: Mapping[int, int], needed: Iterable[int], rows: int, wanted: Wanted
) -> list[int]:
    """Choose the tokens that stay.

    A token is taken with all that it is made of, the most frequent first; then, where there is room, those of the
    lowest ids: vocabularies begin with what is frequent.

    Args:
        file: The tokenizer.
        counts: {token: how often it is in the text}.
        needed: Tokens that stay in any case, beside those that the file says.
        rows: How many tokens the model has.
        wanted: How many should stay.

    Returns:
        Ascending ids.

    Raises:
        PlanError: The number is too small for the tokens that have to stay, or nothing goes.
    """
    kept: set[int] = set()
    for number in sorted({*file.needed, *needed} & file.tokens.keys()):
        kept |= file.with_parts(number, kept)
    least, frequent = len(kept), sorted(counts, key=lambda number: (-counts[number], number))
    size = wanted.number(rows)
    if size is None:
        for number in frequent:
            kept |= file.with_parts(number, kept)
        size = rounded_up(len(kept), rows)
    _check_size(size, least, rows)
    rest = (number for number in range(rows) if number not in file.tokens)
    for number in (*frequent, *file.tokens, *rest):
        if len(kept) == size:
            break
        new = file.with_parts(number, kept) if number in file.tokens else {number} - kept
        if len(kept) + len(new) <= size:
            kept |= new
    return sorted(kept)


def _check_size(size: int, least: int, rows: int) -> None:
    if size < least:
        raise PlanError(
            f"{VOCAB.field}={size:,} is too small: {least:,} tokens have to stay (bytes or characters, special and "
            "added tokens, and what they are made of)"
        )
    if size > rows:
        raise PlanError(f"{VOCAB.field}={size:,} is more than the model has ({rows:,})")
    if size == rows:
        raise PlanError(f"all of {rows:,} tokens would stay; ask for a larger ratio, `prune` {VOCAB.name}=RATIO")


def tell(text: Counted, kept: list[int], rows: int) -> None:
    """Log what was chosen.

    Args:
        text: The texts.
        kept: Ids of the tokens that stay.
        rows: How many there were.
    """
    names, total = redact(", ".join(text.names)), sum(text.counts.values())
    log(
        f"vocabulary: {len(text.counts):,} of {rows:,} tokens are used, {total:,} times, by {names}; "
        f"{len(kept):,} tokens stay, {text.covered(kept):.2%} of the text"
    )
