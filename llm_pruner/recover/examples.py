"""From texts to what the Trainer feeds: windows of running text, or Alpaca records of which only the response counts.

The template of the records is Stanford Alpaca's (github.com/tatsu-lab/stanford_alpaca), the one AMP recovers with.
"""

from collections.abc import Iterable
from itertools import islice

import torch
from torch.utils.data import Dataset

from llm_pruner import data
from llm_pruner.errors import RunError, UsageError

IGNORED = -100  # a label that has no loss
PIECE = 2**16  # characters tokenised at a time
C4_WINDOWS = 20_000  # of c4, unless told how many
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


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
        return {"input_ids": ids, "labels": labels}

    @property
    def tokens(self) -> int:
        return sum(len(ids) for ids, _ in self.pairs)


def windows(ids: torch.Tensor) -> Examples:
    """Every token of `ids` [n, length] but each window's first is predicted."""
    labels = ids.clone()
    labels[:, 0] = IGNORED
    return Examples(list(zip(ids, labels)))


def training_examples(
    name: str, length: int, tokenizer, vocab_size: int, nsamples: int | None = None, seed: int = 0
) -> Examples:
    """The training data called `name`, at most `nsamples` of its windows or records, chosen by `seed`.

    Running text is cut into windows of `length` tokens without overlap; records end after `length` tokens, and those
    of whose response nothing is left are dropped. UsageError for data that is nothing or too short, RunError where a
    data set cannot be had.
    """
    if tokenizer is None:
        raise RunError("the model has no tokenizer, so there is nothing to train on")
    if data.is_alpaca(name):
        return _records(name, length, tokenizer, vocab_size, nsamples, seed)
    wanted = None if nsamples is None else nsamples * length
    if name == "c4":
        ids = _tokens(data.c4_documents("data"), tokenizer, wanted or C4_WINDOWS * length)
    else:
        pieces = _pieces(data.running_text(name, "training"))
        if wanted is not None:  # some of the text from all over it
            pieces = [pieces[i] for i in _chosen(len(pieces), None, seed, shuffled=True).tolist()]
        ids = _tokens(pieces, tokenizer, wanted)
    if len(ids) < length:
        raise UsageError(
            f"the training text has {len(ids)} tokens, one window needs {length}; "
            "give a longer text or a smaller --max_seq_len"
        )
    data.check_vocabulary(int(ids.max()), vocab_size)
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


def _records(name: str, length: int, tokenizer, vocab_size: int, nsamples: int | None, seed: int) -> Examples:
    records = [record for record in data.alpaca_records(name, "training") if record["output"]]
    if not records:
        raise UsageError(f"training data {name} has no record with an 'output'")
    records = [records[i] for i in _chosen(len(records), nsamples, seed).tolist()]
    prompts = [(WITH_INPUT if record["input"] else WITHOUT_INPUT).format(**record) for record in records]
    asked = tokenizer(prompts, verbose=False)["input_ids"]
    answers = tokenizer([record["output"] for record in records], add_special_tokens=False, verbose=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    pairs = []
    for prompt, answer in zip(asked, answers):
        ids = torch.tensor([*prompt, *answer, *end][:length])
        if len(ids) > len(prompt):
            labels = ids.clone()
            labels[: max(1, len(prompt))] = IGNORED
            pairs.append((ids, labels))
    if not pairs:
        raise UsageError(f"no response in {name} begins within {length} tokens; give a larger --max_seq_len")
    data.check_vocabulary(max(int(ids.max()) for ids, _ in pairs), vocab_size)
    return Examples(pairs)


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch: LongTensors [batch, longest], padded on the right, where neither attention nor loss sees it."""
    longest = max(len(example["input_ids"]) for example in examples)
    shape = (len(examples), longest)
    batch = {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
    }
    for row, example in enumerate(examples):
        length = len(example["input_ids"])
        batch["input_ids"][row, :length] = example["input_ids"]
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, :length] = example["labels"]
    if all(len(example["input_ids"]) == longest for example in examples):
        del batch["attention_mask"]
    return batch
