"""Files of texts by what is in them: records are read as what they are, and what is of no known kind is refused."""

import json

import pytest
import torch

from llm_pruner.calibration import prompts, texts, windows
from llm_pruner.errors import UsageError
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.recovery.examples import IGNORED, training_examples
from tests.support.commands import DEMO

ALPACA = {"instruction": "Name a colour.", "input": "", "output": "Blue."}
CHAT = {"messages": [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]}
PARTS = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " there"}]}]
}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KNOWN = "records of `text`, of `instruction`"
BOM = "\ufeff"


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DEMO)


@pytest.fixture
def chatty():
    tokenizer = load_tokenizer(DEMO)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def write(folder, name: str, content: str | bytes) -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (lines({"text": "One."}, {"text": "Two.\nThree."}), "One.\n\nTwo.\nThree."),
        (lines({"text": "One.", "id": 7}).replace("\n", "\r\n\r\n"), "One."),
        (json.dumps([{"text": "One."}, {"text": "é"}], indent=2, ensure_ascii=False), "One.\n\né"),
        (json.dumps({"text": "One."}, indent=2), "One."),
        (BOM + lines({"text": "One."}), "One."),
        ('{"text": "a \\ud800 b"}', "a ? b"),
        (lines(CHAT, PARTS), "user: Name a colour.\nassistant: Blue.\n\nuser: Hi there\n"),
    ],
)
def test_records_stand_for_text(tmp_path, name, content, text):
    path = write(tmp_path, name, content)
    assert texts.load_text(path) == text
    found = texts.text_of(path)
    assert found.text() == text


def test_an_alpaca_record_is_scored_as_the_filled_template(tmp_path):
    found = texts.load_text(write(tmp_path, "a.jsonl", lines(ALPACA, {**ALPACA, "input": "warm", "output": 7})))
    first, second = found.split("\n\nBelow is")
    assert first.endswith("### Instruction:\nName a colour.\n\n### Response:\nBlue.")
    assert second.endswith("### Input:\nwarm\n\n### Response:\n7")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"output": 0}, ("Name a colour.", "", "0")),
        ({"instruction": 3.5, "input": False, "output": True}, ("3.5", "False", "True")),
        ({"input": None, "output": None}, ("Name a colour.", "", "")),
        ({"text": "of Stanford's"}, ("Name a colour.", "", "Blue.")),
    ],
)
def test_values_that_are_no_text(tmp_path, values, expected):
    (record,) = texts.text_of(write(tmp_path, "a.json", json.dumps([ALPACA | values]))).of
    assert tuple(record.values()) == expected


@pytest.mark.parametrize(
    "content", ["{\\rtf1 is no JSON}", "[1] A note.\n[2] Another.", "{{ braces }}\n{}", "7\n8\n", "[]("]
)
def test_prose_that_only_looks_like_records_is_prose(tmp_path, content):
    assert texts.load_text(write(tmp_path, "a.txt", content)) == content


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", lines({"prompt": "a"}), rf"a.jsonl: record 1 has the fields \['prompt'\]; {KNOWN}"),
        ("a.txt", lines({"prompt": "a"}), KNOWN),
        ("a.jsonl", lines({"text": "a"}, 7), "record 2 is 7"),
        ("a.jsonl", lines({"text": "a"}, ALPACA), r"record 2 is of another kind \(Alpaca\) than the first \(text\)"),
        ("a.jsonl", lines({"text": "a"}) + '{"text": \n' + lines({"text": "b"}), "line 2, is not JSON"),
        ("a.txt", lines({"text": "a"}) + "and so on", "line 2, is not JSON"),
        ("a.txt", json.dumps([ALPACA, ALPACA])[:-9], "is not JSON"),
        ("a.json", "Once upon a time.", "line 1, is not JSON"),
        ("a.json", "[]", "empty list"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", '{"text": ' + "9" * 5000 + "}", "is not JSON"),
        ("a.json", json.dumps([ALPACA | {"output": ["a"]}]), r"record 1: output: \['a'\] must be text or a number"),
        ("a.json", json.dumps([{"text": 7}]), "record 1: text: 7 must be text"),
        ("a.json", json.dumps({"data": [ALPACA]}), "has the fields"),
        ("a.jsonl", lines({"messages": []}), "must be a list of messages"),
        ("a.jsonl", lines({"messages": ["hi"]}), "message 1: 'hi' must be a mapping with `role` and `content`"),
        ("a.jsonl", lines({"messages": [{"role": "user"}]}), "message 1: content: None must be text"),
        ("a.jsonl", lines({"messages": [{"role": 7, "content": "a"}]}), "role: 7 must be text"),
        (
            "a.jsonl",
            lines({"messages": [{"role": "user", "content": [{"type": "image"}]}]}),
            "must be text, or a list of",
        ),
        ("a.txt", "Ünder".encode("latin-1"), "not a UTF-8 text file: byte 0 is 0xdc"),
        ("a.txt", "text".encode("utf-16"), "looks like UTF-16"),
        ("a.txt", "text".encode("utf-16-le"), "byte 1 is 0"),
        ("a.txt", b"\x1f\x8b\x08\x00abc", "as a compressed one it is damaged"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
@pytest.mark.parametrize("use", ["calibration", "evaluation", "training"])
def test_what_cannot_be_read_is_refused(tmp_path, tokenizer, name, content, message, use):
    path = write(tmp_path, name, content)
    with pytest.raises(UsageError, match=message) as caught:
        {
            "calibration": lambda: prompts.calibration_prompts(path, 2, 4, 0, tokenizer),
            "evaluation": lambda: texts.load_text(path, tokenizer),
            "training": lambda: training_examples(path, 4, tokenizer, 10_000),
        }[use]()
    assert len(str(caught.value)) < 500 + len(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has 0 tokens"),
        (" \n\t" * 99, "nothing but blanks and has 0 tokens"),
        ("a", "has 1 token,"),
        (BOM, "has 0 tokens"),
    ],
)
def test_texts_of_nothing_say_how_much_there_is(tmp_path, tokenizer, content, message):
    path = write(tmp_path, "a.txt", content)
    config = type("Config", (), {"vocab_size": 10_000, "get_text_config": lambda self: self})()
    for ask in (
        lambda: prompts.calibration_prompts(path, 2, 4, 0, tokenizer),
        lambda: windows.evaluation_windows(path, tokenizer, config, 4),
        lambda: training_examples(path, 4, tokenizer, 10_000),
    ):
        with pytest.raises(UsageError, match=rf"a\.txt {'.*' * content.isspace()}{message}.*one window needs 4"):
            ask()


@pytest.mark.parametrize(
    ("name", "message"), [("/dev/zero", "no regular file"), (".", "is a folder"), ("~nobody/x", "neither")]
)
def test_what_is_no_regular_file_is_refused(name, message):
    for known in (texts.DATASETS, texts.CALIBRATION):
        with pytest.raises(UsageError, match=message):
            texts.check_name(name, known)


def learned(example, tokenizer) -> str:
    return tokenizer.decode(example["labels"][example["labels"] != IGNORED])


def test_only_the_assistants_turns_of_a_chat_count(tmp_path, tokenizer, chatty):
    turns = [
        ("system", "Be brief."),
        ("user", "A colour?"),
        ("assistant", "Blue."),
        ("user", "And?"),
        ("assistant", "Red."),
    ]
    chat = {"messages": [{"role": role, "content": content} for role, content in turns]}
    path = write(tmp_path, "a.jsonl", lines(chat, {"messages": chat["messages"][:2]}))
    (example,) = training_examples(path, 400, tokenizer, 10_000)
    assert tokenizer.decode(example["input_ids"]) == (
        "system: Be brief.\nuser: A colour?\nassistant: Blue.\nuser: And?\nassistant: Red.<|endoftext|>"
    )
    assert learned(example, tokenizer) == " Blue. Red.<|endoftext|>"
    (example,) = training_examples(path, 400, chatty, 10_000)
    whole = chatty.apply_chat_template(chat["messages"], tokenize=False)
    assert chatty.decode(example["input_ids"]) == whole
    assert learned(example, chatty) == "Blue.</assistant>\nRed.</assistant>\n"
    assert texts.load_text(path, chatty).startswith(whole + "\n\n<system>")


def test_a_chat_that_the_template_refuses_is_named(tmp_path, chatty):
    path = write(tmp_path, "a.jsonl", lines(CHAT, CHAT))
    for template, reason in (("{{ raise_exception('no such role') }}", "no such role"), ("{% for %}", "Expected")):
        chatty.chat_template = template
        with pytest.raises(UsageError, match=f"record 1 does not go with the chat template of the tokenizer: {reason}"):
            texts.load_text(path, chatty)


def test_a_large_text_is_only_read_around_the_windows(tmp_path, monkeypatch, tokenizer):
    """… and gives the same windows for the same seed, whether it is a file or what records stand for."""
    text = "".join(f"Line {i} of the harbour – with {i % 7} röpes.\n" for i in range(20_000))
    paths = [write(tmp_path, "a.txt", text), write(tmp_path, "a.jsonl", lines({"text": text}))]
    monkeypatch.setattr(texts, "LARGE", len(text) // 2)
    read = 0

    def counting(piece, **options):
        nonlocal read
        read += len(piece)
        return tokenizer(piece, **options)

    for path in paths:
        read = 0
        found = prompts.calibration_prompts(path, 6, 32, 3, counting)
        assert read < len(text) / 50
        assert [len(prompt) for prompt in found] == [32] * 6
        assert all(tokenizer.decode(prompt) in text for prompt in found)
        assert len({prompt[0].item() for prompt in found} | {tuple(prompt.tolist()) for prompt in found}) > 6
        again = prompts.calibration_prompts(path, 6, 32, 3, counting)
        assert all(torch.equal(one, other) for one, other in zip(found, again))


def test_a_large_file_of_nothing_much_is_refused(tmp_path, monkeypatch, tokenizer):
    monkeypatch.setattr(texts, "LARGE", 1000)
    path = write(tmp_path, "a.txt", " " * 5000)
    with pytest.raises(UsageError, match="only blanks in 5,000 bytes"):
        prompts.calibration_prompts(path, 2, 8, 0, tokenizer)
    path = write(tmp_path, "a.txt", b"a" * 3000 + b"\xff" * 3000)
    with pytest.raises(UsageError, match=r"not a UTF-8 text file: byte \d,\d+ is 0xff"):
        prompts.calibration_prompts(path, 9, 8, 0, tokenizer)


def test_more_windows_than_memory_are_refused_before_anything_is_drawn(tmp_path, tokenizer):
    path = write(tmp_path, "a.txt", "words and words " * 50)
    with pytest.raises(UsageError, match="nsamples 1,000,000,000 × calibration_seq_len 8"):
        prompts.calibration_prompts(path, 10**9, 8, 0, tokenizer)


def test_running_out_of_memory_over_windows_names_what_was_asked_for(tmp_path, tokenizer, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch, "randint", full)
    with pytest.raises(UsageError, match="nsamples 3 × calibration_seq_len 8 tokens of .* do not fit into the memory"):
        prompts.calibration_prompts(write(tmp_path, "a.txt", "words and words " * 50), 3, 8, 0, tokenizer)
