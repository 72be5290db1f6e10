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
