import pytest

from llm_pruner.calibration.windows import token_windows
from llm_pruner.errors import UsageError


class Letters:
    """A tokenizer that starts with a token of its own, as many do."""

    def __call__(self, text, verbose):
        return {"input_ids": [0, *map(ord, text)]}


def test_windows_drop_the_remainder():
    windows = token_windows("abcdefg", Letters(), 3)
    assert windows.tolist() == [[0, 97, 98], [99, 100, 101]]


def test_tokens_that_the_model_does_not_know():
    with pytest.raises(UsageError, match="gives token 103, the model knows 103"):
        token_windows("abcdefg", Letters(), 3, vocab_size=103)


def test_text_of_exactly_one_window():
    assert token_windows("ab", Letters(), 3).shape == (1, 3)


def test_text_too_short_says_how_much_there_is():
    with pytest.raises(UsageError, match="has 2 tokens, one window needs 3"):
        token_windows("a", Letters(), 3)
