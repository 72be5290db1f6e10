import bz2
import gzip
import lzma

import pytest

from llm_pruner.calibration import texts
from llm_pruner.errors import RunError, UsageError


def test_a_file_is_one_string(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("a\n\n b \r\né\n".encode())
    assert texts.load_text(str(file)) == "a\n\n b \r\né\n"


def test_file_that_is_no_text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a UTF-8 text file"):
        texts.load_text(str(file))


def test_unknown_name():
    with pytest.raises(UsageError, match="did you mean 'wikitext2'"):
        texts.load_text("wikitext")


def test_wikitext2_is_the_test_split_joined_by_blank_lines(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return {"text": ["", " = Title = \n", "body"]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert texts.load_text("wikitext2") == "\n\n = Title = \n\n\nbody"
    assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "test"})]


def test_wikitext2_without_a_hub(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RunError, match="`eval_data=FILE`"):
        texts.load_text("wikitext2")


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress), ("", bz2.compress)])
def test_a_compressed_file_is_read_as_what_is_in_it(tmp_path, suffix, compress):
    text, records = tmp_path / f"text.txt{suffix}", tmp_path / f"records.jsonl{suffix}"
    text.write_bytes(compress("é and so on\n".encode()))
    records.write_bytes(compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert texts.load_text(str(text)) == "é and so on\n"
    found = texts.text_of(str(records))
    assert (found.kind, found.of) == ("text", ["one", "two"])


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress])
def test_a_compressed_file_that_is_damaged(tmp_path, compress, monkeypatch):
    file, whole = tmp_path / "text", compress(b"words and words " * 9)
    file.write_bytes(whole[:-9])
    with pytest.raises(UsageError, match="not a UTF-8 text file: as a compressed one it is damaged"):
        texts.load_text(str(file))
    file.write_bytes(whole[:12] + b"\xff" * 40)
    with pytest.raises(UsageError, match="not a UTF-8 text file: as a compressed one it is damaged"):
        texts.load_text(str(file))
    file.write_bytes(whole)
    monkeypatch.setattr(texts, "MOST_UNPACKED", 100)
    with pytest.raises(UsageError, match="holds more than 100 bytes; unpack it"):
        texts.load_text(str(file))


def test_instructions_are_the_records_of_alpaca_as_chats(monkeypatch):
    import datasets

    records = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    ]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: records)
    assert texts.text_of("instructions").text() == (
        "user: Add.\n\n1, 2\nassistant: 3\n\nuser: Name a colour.\nassistant: Blue."
    )
    assert texts.text_of("alpaca").kind == "Alpaca"
