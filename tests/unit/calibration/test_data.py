import pytest

from llm_pruner.calibration import data
from llm_pruner.errors import RunError, UsageError


class Letters:
    """A tokenizer that starts with a token of its own, as many do."""

    def __call__(self, text, verbose):
        return {"input_ids": [0, *map(ord, text)]}


def test_windows_drop_the_remainder():
    windows = data.token_windows("abcdefg", Letters(), 3)
    assert windows.tolist() == [[0, 97, 98], [99, 100, 101]]


def test_tokens_that_the_model_does_not_know():
    with pytest.raises(UsageError, match="gives token 103, the model knows 103"):
        data.token_windows("abcdefg", Letters(), 3, vocab_size=103)


def test_text_of_exactly_one_window():
    assert data.token_windows("ab", Letters(), 3).shape == (1, 3)


def test_text_too_short_says_how_much_there_is():
    with pytest.raises(UsageError, match="has 2 tokens, one window needs 3"):
        data.token_windows("a", Letters(), 3)


def test_a_file_is_one_string(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes("a\n\n b \r\né\n".encode())
    assert data.load_text(str(file)) == "a\n\n b \r\né\n"


def test_file_that_is_no_text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a UTF-8 text file"):
        data.load_text(str(file))


def test_unknown_name():
    with pytest.raises(UsageError, match="did you mean 'wikitext2'"):
        data.load_text("wikitext")


def test_wikitext2_is_the_test_split_joined_by_blank_lines(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*arguments, **options):
        asked.append((arguments, options))
        return {"text": ["", " = Title = \n", "body"]}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert data.load_text("wikitext2") == "\n\n = Title = \n\n\nbody"
    assert asked == [(("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "test"})]


def test_wikitext2_without_a_hub(monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(RunError, match="`eval_data=FILE`"):
        data.load_text("wikitext2")
