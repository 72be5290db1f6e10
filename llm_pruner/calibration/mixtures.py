"""A calibration text that is mixed from several: their shares, how many windows each has, and in which order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_pruner.calibration.texts import CALIBRATION, check_name, usual_text
from llm_pruner.errors import UsageError, redact
from llm_pruner.files import text_digest

if TYPE_CHECKING:
    import torch

# text that the model writes itself
SELF = "self"
# named mixtures, whose members have equal shares: an encyclopaedia, the web, and questions with their answers
MIXTURES = {"mix": ("wikitext2", "c4", "instructions")}
KNOWN = (*CALIBRATION, SELF, *MIXTURES)
# from 1, of shares that were rounded
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Source:
    """One of the texts of a mixture.

    Attributes:
        data: A data set, a file, or `self`.
        share: Of the windows, above 0 and at most 1.
    """

    data: str
    share: float = 1.0


@dataclass(frozen=True)
class Drawn:
    """Windows by text. Those that the model writes are missing until the model is at hand.

    Attributes:
        sources: The texts.
        windows: For each text LongTensors [length]; None for what is still to be written.
        to_write: How many windows the model writes.
        seq_len: Tokens of each of them.
        seed: Of the random numbers for them.
        tokenizer: The model's.
        missing: Texts that the hub did not give, in whose place the model writes.
    """

    sources: tuple[Source, ...]
    windows: "tuple[list[torch.Tensor] | None, ...]"
    to_write: int
    seq_len: int
    seed: int
    tokenizer: Any
    missing: tuple[str, ...] = ()

    @property
    def counts(self) -> list[int]:
        """How many windows there are of each text."""
        return [self.to_write if own is None else len(own) for own in self.windows]

    @property
    def prompts(self) -> "list[torch.Tensor]":
        """All windows, so mixed that neighbours are of all texts."""
        rows: list[Iterator[torch.Tensor]] = [iter(own or ()) for own in self.windows]
        return [next(rows[text]) for text in order([len(own or ()) for own in self.windows])]


def parsed(data: str | Sequence[str]) -> tuple[Source, ...]:
    """Return the texts that are asked for.

    Args:
        data: Names of data sets, files or mixtures, each with a share behind `=` or without; those without have equal
            parts of what the others leave.

    Returns:
        The texts, with the members of a mixture in its place. Their shares sum to 1.

    Raises:
        UsageError: A share is not in (0, 1], the shares do not sum to 1, or a text is named twice.
    """
    given = [_split(one) for one in listed(data)]
    found: dict[str, float] = {}
    for name, share in zip([name for name, _ in given], _shares(given), strict=True):
        members = MIXTURES.get(name, (name,))
        for member in members:
            if member in found:
                raise UsageError(f"`calibration_data` has {member} twice; name each text once, with its share")
            found[member] = share / len(members)
    return tuple(Source(name, share) for name, share in found.items())


def listed(data: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return one text as several texts are given."""
    return (data,) if isinstance(data, str) else tuple(data or ())


def text_name(given: str) -> str:
    """Return the name of a text without its share."""
    return _split(given)[0]


def text_key(given: str) -> str:
    """Return what tells a text, with its share, from others: the digest of a file's content, or the name."""
    name, share = _split(given)
    return text_digest(name) if share is None else f"{text_digest(name)}={share:g}"


def asked_texts(data: str | Sequence[str] | None, model: str, usual: str | Sequence[str]) -> str | tuple[str, ...]:
    """Return the calibration texts as they are asked for: one name, or several.

    Args:
        data: As in `parsed`; None for the usual one.
        model: The name of the model that is calibrated.
        usual: The texts that the method is used with.

    Raises:
        UsageError: As in `parsed`, or there is no such data set or file.
    """
    names = listed(data or usual_text(model, other="") or usual)
    parsed(names)
    for name in names:
        check_name(text_name(name), KNOWN, "calibration")
    return names[0] if len(names) == 1 else names


def shared_out(nsamples: int, sources: Sequence[Source]) -> list[int]:
    """Share windows out among texts by the largest remainder, at least one to each.

    Args:
        nsamples: The number of all windows.
        sources: The texts.

    Raises:
        UsageError: There are more texts than windows.
    """
    if nsamples < len(sources):
        raise UsageError(f"`nsamples` {nsamples}: {len(sources)} texts need at least one window each")
    exact = [nsamples * source.share for source in sources]
    counts = [max(1, int(number)) for number in exact]
    while (missing := nsamples - sum(counts)) > 0:
        counts[max(range(len(counts)), key=lambda i: exact[i] - counts[i])] += 1
    while missing < 0:
        counts[min((i for i, count in enumerate(counts) if count > 1), key=lambda i: exact[i] - counts[i])] -= 1
        missing += 1
    return counts


def order(counts: Sequence[int]) -> list[int]:
    """Return from which text each window comes, so that neighbours are of all texts, by their numbers.

    The next window is of the text that is furthest behind its share of the windows so far (smooth weighted
    round-robin, as in the load balancer of nginx).

    Args:
        counts: How many windows each text has.

    Returns:
        The number of a text for each window.
    """
    total = sum(counts)
    placed = [0] * len(counts)
    found: list[int] = []
    for place in range(total):
        behind = [count * (place + 1) / total - own for count, own in zip(counts, placed, strict=True)]
        found.append(max(range(len(counts)), key=behind.__getitem__))
        placed[found[-1]] += 1
    return found


def told(sources: Iterable[Source]) -> str:
    """Return the names of texts for a message, with their shares where there are several, without access tokens."""
    own = list(sources)
    if len(own) == 1:
        return redact(own[0].data)
    return ", ".join(f"{redact(source.data)} ({source.share:.0%})" for source in own)


def _split(given: str) -> tuple[str, float | None]:
    """(the name, the share that a number behind the last `=` is)."""
    name, equals, number = given.rpartition("=")
    try:
        share = float(number) if equals and name else None
    except ValueError:
        share = None
    if share is None:
        return given, None
    if not 0 < share <= 1:
        raise UsageError(f"`calibration_data` {given}: a share must be above 0 and at most 1")
    return name, share


def _shares(given: Sequence[tuple[str, float | None]]) -> list[float]:
    """The shares, with equal parts of the rest for those without one."""
    total = sum(share for _, share in given if share is not None)
    others = [name for name, share in given if share is None]
    if not others and abs(total - 1) > TOLERANCE:
        raise UsageError(
            f"`calibration_data`: the shares sum to {total:g}, not to 1; leave one out, and its text takes the rest"
        )
    if others and total > 1 - TOLERANCE:
        raise UsageError(f"`calibration_data`: the shares sum to {total:g} and leave nothing to {others[0]}")
    return [(1 - total) / len(others) if share is None else share for _, share in given]
