"""Texts as the Trainer reads them."""

import json

import pytest
import torch

from llm_pruner.errors import UsageError
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.recovery.examples import IGNORED, collate, training_examples
from tests.support.commands import DEMO

RECORDS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Add.", "input": "one and two", "output": "three"},
    {"instruction": "Nothing to answer.", "input": "", "output": ""},
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(DEMO))


def records_file(tmp_path, records=RECORDS) -> str:
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


def test_running_text_is_cut_into_windows(tmp_path, tokenizer):
    text = "\n".join(f"Line {i} of the harbour, with {i % 7} ropes." for i in range(4000)) + "\n"
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    examples = training_examples(str(path), 32, tokenizer, 10_000)
    ids = torch.cat([example["input_ids"] for example in examples])
    assert len(text) > 2 * 65_536, "several pieces, or their seams are not tested"
    assert text.startswith(tokenizer.decode(ids[:-2]))
    labels = torch.stack([example["labels"] for example in examples])
    assert (labels[:, 0] == IGNORED).all()
    assert torch.equal(labels[:, 1:].flatten(), torch.stack([e["input_ids"] for e in examples])[:, 1:].flatten())
    assert examples.tokens == 32 * len(examples)

    few = training_examples(str(path), 32, tokenizer, 10_000, nsamples=9, seed=1)
    assert len(few) == 9
    assert torch.equal(few[0]["input_ids"], training_examples(str(path), 32, tokenizer, 10_000, 9, 1)[0]["input_ids"])
    starts = {tuple(training_examples(str(path), 32, tokenizer, 10_000, 9, seed)[0]["input_ids"]) for seed in range(8)}
    assert len(starts) > 1


def test_only_the_response_of_a_record_counts(tmp_path, tokenizer):
    examples = training_examples(records_file(tmp_path), 200, tokenizer, 10_000)
    assert len(examples) == 2
    for example, record in zip(examples, RECORDS):
        ids, labels = example["input_ids"], example["labels"]
        answer = [*tokenizer(record["output"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        assert labels[labels != IGNORED].tolist() == answer
        assert ids[-len(answer) :].tolist() == answer
        prompt = tokenizer.decode(ids[: -len(answer)])
        assert prompt.endswith("### Response:\n")
        assert f"### Instruction:\n{record['instruction']}\n" in prompt
        assert (f"### Input:\n{record['input']}\n" in prompt) == bool(record["input"])


def test_a_response_that_is_cut_off_is_dropped(tmp_path, tokenizer):
    lengths = sorted(len(e["input_ids"]) for e in training_examples(records_file(tmp_path), 500, tokenizer, 10_000))
    short = training_examples(records_file(tmp_path), lengths[0], tokenizer, 10_000)
    assert len(short) == 1
    with pytest.raises(UsageError, match="no response in .* begins within 5 tokens"):
        training_examples(records_file(tmp_path), 5, tokenizer, 10_000)


def test_batches_are_padded_where_nothing_looks(tmp_path, tokenizer):
    first, second = training_examples(records_file(tmp_path), 200, tokenizer, 10_000)
    batch = collate([first, second])
    short, long = sorted((first, second), key=lambda e: len(e["input_ids"]))
    row = 0 if short is first else 1
    length = len(short["input_ids"])
    assert batch["input_ids"].shape == (2, len(long["input_ids"]))
    assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (len(long["input_ids"]) - length)
    assert (batch["labels"][row, length:] == IGNORED).all()
    assert "attention_mask" not in collate([first, first])


@pytest.mark.parametrize(
    ("content", "message"),
    [("[]", "is an empty list"), ("{", "not JSON"), ('[{"instruction": "a"}]', "no record with an 'output'")],
)
def test_records_that_cannot_be_meant(tmp_path, tokenizer, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        training_examples(str(path), 64, tokenizer, 10_000)


def test_text_that_is_too_short_or_of_another_vocabulary(tmp_path, tokenizer):
    path = tmp_path / "short.txt"
    path.write_text("Rain fell.")
    with pytest.raises(UsageError, match="tokens, one window needs 64"):
        training_examples(str(path), 64, tokenizer, 10_000)
    with pytest.raises(UsageError, match="do not belong together"):
        training_examples(str(path), 2, tokenizer, 3)
