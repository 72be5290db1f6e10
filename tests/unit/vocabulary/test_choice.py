"""Which tokens stay."""

import pytest

from llm_pruner.errors import PlanError, UsageError
from llm_pruner.vocabulary.choice import Wanted, choose, counted, rounded_up, template_tokens, texts_to_count
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


def test_the_texts_are_those_of_the_vocabulary_or_else_of_the_calibration_or_else_the_usual_one(tmp_path):
    own = str(tmp_path / "own.txt")
    (tmp_path / "own.txt").write_text("a")
    mixture = ("c4=0.5", f"{own}=0.25", "self")
    assert texts_to_count("alpaca", mixture, "model") == ("alpaca",)
    assert texts_to_count("mix", None, "model") == ("wikitext2", "c4", "instructions")
    assert texts_to_count(None, mixture, "model") == ("c4", own)
    assert texts_to_count(None, ("mix", "self=0.25"), "model") == ("wikitext2", "c4", "instructions")
    assert texts_to_count(None, None, "model") == ("wikitext2",)
    assert texts_to_count(None, None, "demo") == ("demo",)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("self", None), "the model writes the text called self with the tokens that stay.*`vocab_data=FILE`"),
        ((None, ("self",)), "the model writes the text called self with the tokens that stay.*`vocab_data=FILE`"),
        (("wikitext", None), "vocabulary data 'wikitext' is neither a file nor a data set; did you mean 'wikitext2'"),
        ((None, ("none.txt", "demo")), "calibration data 'none.txt' is neither"),
    ],
)
def test_texts_that_tell_no_tokens(texts, message):
    with pytest.raises(UsageError, match=message):
        texts_to_count(*texts, "model")


def test_tokens_of_all_texts_are_counted(tmp_path):
    tokenizer = vocabularies.save(vocabularies.byte_level(), tmp_path)
    paths = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    for path, text in zip(paths, ("the river", "the wheel"), strict=True):
        (tmp_path / path).write_text(text)
    both, first, second = (counted(names, tokenizer) for names in (paths, paths[:1], paths[1:]))
    assert both.names == tuple(paths)
    assert both.counts == first.counts + second.counts
    assert first.counts != second.counts


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
