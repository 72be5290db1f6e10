"""How tokens are made of others, and what is left of a tokenizer's model."""

import pytest

from llm_pruner.errors import PlanError
from llm_pruner.vocabulary.pieces import BYTES, Longest, Merges, Scored, pieces_of

# "ab" before "bc": abc is (ab, c), although (a, bc) makes it too
BPE = {
    "type": "BPE", "vocab": {token: n for n, token in enumerate(["a", "b", "c", "d", "ab", "bc", "abc", "abcd", "xy"])},
    "merges": [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"], ["abc", "d"]],
}  # fmt: skip


def test_a_token_is_made_of_the_pair_that_is_merged_at_last():
    merges = Merges.of(BPE)
    assert merges.parts("abc") == ("ab", "c")
    assert merges.parts("abcd") == ("abc", "d")
    assert merges.parts("ab") == ("a", "b")
    assert merges.parts("a") == ()


def test_a_token_that_no_merges_make_has_no_parts():
    assert Merges.of(BPE).parts("xy") == ()


def test_merges_go_with_any_of_their_tokens():
    new = {0: 0, 1: 1, 2: 2, 4: 3, 6: 4}
    made = Merges.of(BPE).rewritten(new)
    assert made["vocab"] == {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    assert made["merges"] == [["a", "b"], ["ab", "c"]]


def test_merges_may_be_written_as_text():
    written = {**BPE, "merges": [" ".join(merge) for merge in BPE["merges"]]}
    merges = Merges.of(written)
    assert merges.parts("abc") == ("ab", "c")
    assert merges.rewritten({0: 0, 1: 1, 4: 2})["merges"] == ["a b"]


def test_characters_stay():
    assert Merges.of(BPE).needed == {0, 1, 2, 3}


def test_where_there_are_bytes_other_characters_may_go():
    vocabulary = {token: n for n, token in enumerate([*sorted(BYTES), "a", "\u2581", "ü", "<unk>", "aü"])}
    raw = {**BPE, "vocab": vocabulary, "merges": [["a", "ü"]], "byte_fallback": True, "unk_token": "<unk>"}
    assert Merges.of(raw).needed == {*range(256), 256, 257, 259}
    assert Merges.of({**raw, "byte_fallback": False}).needed == {*range(256), 256, 257, 258, 259}
    short = {token: n for token, n in vocabulary.items() if token != "<0x00>"}
    assert 258 in Merges.of({**raw, "vocab": short}).needed


def test_the_lowest_score_stays_because_unknown_characters_score_below_it():
    raw = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0], ["abc", -9.0], ["ab", -2.0]]}
    assert Scored(raw).needed == {0, 1, 2}
    assert Scored(raw).rewritten({0: 0, 1: 1, 3: 2})["vocab"] == [["<unk>", 0.0], ["a", -1.0], ["ab", -2.0]]


def test_the_unknown_token_gets_its_new_number():
    raw = {"type": "Unigram", "unk_id": 2, "vocab": [["a", -1.0], ["ab", -2.0], ["<unk>", 0.0]]}
    assert Scored(raw).rewritten({0: 0, 2: 1})["unk_id"] == 1


def test_characters_inside_a_word_stay():
    vocabulary = {"[UNK]": 0, "a": 1, "##b": 2, "ab": 3, "##bc": 4}
    raw = {"type": "WordPiece", "vocab": vocabulary, "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    assert Longest(raw).needed == {0, 1, 2}


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"type": "WordLevel"}, "its model is 'WordLevel'"),
        ({**BPE, "end_of_word_suffix": "</w>"}, "its BPE has end_of_word_suffix"),
    ],
)
def test_what_cannot_be_pruned_is_refused(raw, message):
    with pytest.raises(PlanError, match=message):
        pieces_of(raw)
