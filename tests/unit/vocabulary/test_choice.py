"""Which tokens stay."""

import pytest

from llm_pruner.errors import PlanError, UsageError
from llm_pruner.vocabulary.choice import Wanted, choose, counted, rounded_up, template_tokens
from llm_pruner.vocabulary.pieces import Merges
from llm_pruner.vocabulary.tokenizer_file import TokenizerFile
from tests.support import vocabularies

TOKENS = ["<s>", "a", "b", "c", "d", "ab", "bc", "abc", "abcd", "cd", "dc"]
MERGES = [["a", "b"], ["b", "c"], ["ab", "c"], ["abc", "d"], ["c", "d"], ["d", "c"]]
RAW = {
    "model": {"type": "BPE", "vocab": {token: n for n, token in enumerate(TOKENS)}, "merges": MERGES},
    "added_tokens": [{"id": 0, "content": "<s>"}],
}
ROWS = 13


@pytest.fixture
def file():
    return TokenizerFile(RAW, Merges.of(RAW["model"]), "tokenizer.json")


def chosen(file, counts, wanted, needed=()):
    return [TOKENS[n] if n < len(TOKENS) else n for n in choose(file, counts, needed, ROWS, wanted)]


ALWAYS = ["<s>", "a", "b", "c", "d"]


def test_a_token_stays_with_all_that_it_is_made_of(file):
    assert chosen(file, {8: 1}, Wanted()) == [*ALWAYS, "ab", "abc", "abcd"]


def test_the_most_frequent_come_first_and_what_is_too_large_is_left_out(file):
    # abcd would take three
    assert chosen(file, {8: 9, 10: 5, 9: 1}, Wanted(size=7)) == [*ALWAYS, "cd", "dc"]
    assert chosen(file, {8: 9, 10: 5, 9: 1}, Wanted(size=8)) == [*ALWAYS, "ab", "abc", "abcd"]


def test_the_rest_of_the_number_is_of_the_lowest_ids_and_rows_without_a_token_come_last(file):
    assert chosen(file, {9: 1}, Wanted(size=8)) == [*ALWAYS, "ab", "bc", "cd"]
    assert chosen(file, {9: 1}, Wanted(size=12)) == [*TOKENS, 11]


def test_tokens_may_be_asked_for(file):
    assert "bc" in chosen(file, {9: 1}, Wanted(size=7), needed=(6,))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Wanted(size=4), "vocab_size=4 is too small: 5 tokens have to stay"),
        (Wanted(size=14), "more than the model has"),
        (Wanted(size=13), "all of 13 tokens would stay"),
    ],
)
def test_numbers_that_cannot_be_met(file, wanted, message):
    with pytest.raises(PlanError, match=message):
        choose(file, {9: 1}, (), ROWS, wanted)


def test_numbers_are_multiples_of_64_where_there_are_enough():
    assert [rounded_up(n, 200) for n in (1, 64, 65, 192, 193)] == [64, 64, 128, 192, 193]
    assert Wanted(ratio=0.3).number(49152) == 34432
    assert Wanted(size=1000).number(49152) == 1000
    assert Wanted().number(49152) is None


def test_tokens_of_the_chat_template_are_known(tmp_path):
    tokenizer = vocabularies.save(vocabularies.byte_level(), tmp_path)
    found = template_tokens(tokenizer)
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id} <= found
    assert set(tokenizer("assistant\n", add_special_tokens=False)["input_ids"]) <= found
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert template_tokens(tokenizer) == set()
    tokenizer.chat_template = None
    assert template_tokens(tokenizer) == set()


def test_a_text_of_nothing_is_refused(tmp_path):
    tokenizer = vocabularies.save(vocabularies.byte_level(), tmp_path)
    (tmp_path / "blank.txt").write_text(" \n\n")
    with pytest.raises(UsageError, match="holds no token"):
        counted([str(tmp_path / "blank.txt")], tokenizer)


def test_a_large_text_is_read_in_pieces(tmp_path, monkeypatch):
    tokenizer = vocabularies.save(vocabularies.byte_level(), tmp_path)
    path = tmp_path / "text.txt"
    path.write_text(vocabularies.TEXT * 40, encoding="utf-8")
    whole = counted([str(path)], tokenizer)
    for module in ("calibration.texts", "vocabulary.choice"):
        monkeypatch.setattr(f"llm_pruner.{module}.LARGE", 1000)
    pieces = counted([str(path)], tokenizer)
    assert sum(pieces.counts.values()) == pytest.approx(sum(whole.counts.values()), rel=0.02)
    assert set(whole.counts) - set(pieces.counts) == set()
