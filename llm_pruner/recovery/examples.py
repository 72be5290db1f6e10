"""From texts to what the Trainer feeds: windows of running text, or records of which only the answers count."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch.utils.data import Dataset

from llm_pruner.calibration.records import TEXT, Records
from llm_pruner.calibration.texts import c4_documents, text_of
from llm_pruner.calibration.windows import check_enough, check_vocabulary, unless_blank
from llm_pruner.errors import RunError, UsageError

# a label that has no loss
IGNORED = -100
# characters tokenised at a time
PIECE = 2**16
# of c4, unless told how many
C4_WINDOWS = 20_000


class Examples(Dataset):
    """Pairs of LongTensors [tokens]: ids, and labels that are IGNORED where nothing is to be predicted.

    The first label of each is IGNORED too: nothing comes before it.
    """

    def __init__(self, pairs: list[tuple[torch.Tensor, torch.Tensor]]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids, labels = self.pairs[index]
        return {"input_ids": ids, "labels": labels, "index": torch.tensor(index)}

    @property
    def tokens(self) -> int:
        """Tokens of all examples."""
        return sum(len(ids) for ids, _ in self.pairs)


def windows(ids: torch.Tensor) -> Examples:
    """Return examples in which every token but the first of its window is predicted.

    Args:
        ids: LongTensor [n, length].
    """
    labels = ids.clone()
    labels[:, 0] = IGNORED
    return Examples(list(zip(ids, labels)))


def training_examples(
    name: str, length: int, tokenizer, vocab_size: int, nsamples: int | None = None, seed: int = 0
) -> Examples:
    """Return training data.

    Running text is cut into windows without overlap; records are cut off, and those of whose response nothing is left
    are dropped.

    Args:
        name: A data set or a file.
        length: Tokens of a window, and of a record at most.
        tokenizer: The model's.
        vocab_size: How many tokens the model knows.
        nsamples: At most so many windows or records; None for all.
        seed: Of the choice among them.

    Raises:
        UsageError: There is no such data, it is too short, or has tokens that the model does not know.
        RunError: The data set cannot be loaded, or there is no tokenizer.
    """
    if tokenizer is None:
        raise RunError("the model has no tokenizer, so there is nothing to train on")
    wanted = None if nsamples is None else nsamples * length
    where = f"training data {name}"
    if name == "c4":
        ids = _tokens(c4_documents("data"), tokenizer, wanted or C4_WINDOWS * length)
    else:
        found = text_of(name, "training")
        if isinstance(found, Records) and found.kind != TEXT:
            return _records(found.answered(), length, tokenizer, vocab_size, nsamples, seed)
        text = found.text(tokenizer) if isinstance(found, Records) else found.whole()
        text, where = unless_blank(text, where)
        pieces = _pieces(text)
        # some of the text from all over it
        if wanted is not None:
            pieces = [pieces[i] for i in _chosen(len(pieces), None, seed, shuffled=True).tolist()]
        ids = _tokens(pieces, tokenizer, wanted)
    check_enough(len(ids), length, where, "`train_seq_len`")
    check_vocabulary(int(ids.max()), vocab_size)
    return windows(ids[: len(ids) // length * length].view(-1, length)[:nsamples])


def _chosen(count: int, nsamples: int | None, seed: int, shuffled: bool = False) -> torch.Tensor:
    if not shuffled and (nsamples is None or nsamples >= count):
        return torch.arange(count)
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:nsamples]


def _pieces(text: str) -> list[str]:
    """`text` in pieces of about PIECE characters, cut behind a line, so that a part of it can be tokenised alone."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + PIECE) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return pieces


def _tokens(pieces: Iterable[str], tokenizer, wanted: int | None) -> torch.Tensor:
    """LongTensor [tokens] of the first pieces, as many as have `wanted` tokens; of all where that is None."""
    found, count, pieces = [], 0, iter(pieces)
    while (wanted is None or count < wanted) and (some := list(islice(pieces, 16))):
        for ids in tokenizer(some, verbose=False)["input_ids"]:
            found.append(torch.tensor(ids, dtype=torch.long))
            count += len(ids)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.long)


def _records(found: Records, length: int, tokenizer, vocab_size: int, nsamples: int | None, seed: int) -> Examples:
    whole = [found.parts(i, tokenizer) for i in _chosen(len(found.of), nsamples, seed).tolist()]
    # then it says itself how it begins and ends
    templated = found.templated(tokenizer)
    first = tokenizer([parts[0].text for parts in whole], add_special_tokens=not templated, verbose=False)["input_ids"]
    others = [part.text for parts in whole for part in parts[1:]]
    rest = iter(tokenizer(others, add_special_tokens=False, verbose=False)["input_ids"] if others else ())
    end = [] if tokenizer.eos_token_id is None or templated else [tokenizer.eos_token_id]
    pairs = []
    for parts, ids in zip(whole, first):
        tokens, learned = list(ids), [False] * len(ids)
        for part, ids in zip(parts[1:], rest):
            tokens += ids
            learned += [part.learned] * len(ids)
        tokens += end if parts[-1].learned else []
        learned += [True] * (len(tokens) - len(learned))
        counts = torch.tensor(learned[:length])
        counts[:1] = False
        if counts.any():
            ids = torch.tensor(tokens[:length])
            pairs.append((ids, ids.where(counts, torch.tensor(IGNORED))))
    if not pairs:
        raise UsageError(f"no response in {found.where} begins within {length} tokens; give a larger `train_seq_len`")
    check_vocabulary(max(int(ids.max()) for ids, _ in pairs), vocab_size)
    return Examples(pairs)


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return a batch: LongTensors [batch, longest], padded on the right, where neither attention nor loss sees it.

    Beside them `index`, LongTensor [batch]: which examples these are.
    """
    longest = max(len(example["input_ids"]) for example in examples)
    shape = (len(examples), longest)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
        "index": torch.stack([example["index"] for example in examples]),
    }
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        batch["input_ids"][row, :length] = example["input_ids"]
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, :length] = example["labels"]
    if all(len(example["input_ids"]) == longest for example in examples):
        del batch["attention_mask"]
    return batch
