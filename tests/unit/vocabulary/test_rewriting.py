"""The rewritten tokenizer: the same tokens for text whose tokens all stay, and none is lost of any other."""

import json
from collections import Counter

import pytest
from tokenizers import Tokenizer
from transformers import LlamaConfig

from llm_pruner.errors import PlanError
from llm_pruner.vocabulary.choice import Wanted, choose, counted
from llm_pruner.vocabulary.rewriting import loaded, rewrite, whole_file
from tests.support import vocabularies
from tests.support.vocabularies import KINDS, LINES, OTHER, TEXT

TWO_LINES = "\n".join(LINES[:2])


class Case:
    """A tokenizer, and the same of fewer tokens."""

    def __init__(self, folder, made, wanted=None, text=TWO_LINES, **options):
        self.source, self.target = folder / "source", folder / "target"
        self.before = vocabularies.save(made, self.source, **options)
        (folder / "text.txt").write_text(text, encoding="utf-8")
        self.text = counted([str(folder / "text.txt")], self.before)
        self.file = whole_file(self.source, self.before, folder / "whole")
        self.rows = len(self.before)
        self.kept = choose(self.file, self.text.counts, (), self.rows, wanted or Wanted())
        self.new = {old: place for place, old in enumerate(self.kept)}

    def pruned(self):
        config = LlamaConfig(vocab_size=len(self.kept))
        rewrite(self.file, self.target, self.new, config)
        return loaded(self.target, self.before, self.file, self.new, self.text.sample)


@pytest.fixture(params=KINDS)
def case(request, tmp_path):
    return Case(tmp_path, KINDS[request.param]())


def ids(tokenizer, text):
    return tokenizer(text)["input_ids"]


def test_text_whose_tokens_all_stay_is_cut_as_before(case):
    pruned = case.pruned()
    assert len(pruned) == len(case.kept) < case.rows
    for text in (case.text.sample, LINES[0], LINES[1]):
        before = ids(case.before, text)
        assert [case.kept[number] for number in ids(pruned, text)] == before
        assert pruned.decode(ids(pruned, text)) == case.before.decode(before)


def test_new_ids_are_in_the_order_of_the_old_ones(case):
    theirs = {number: token for token, number in case.before.get_vocab().items()}
    ours = {number: token for token, number in case.pruned().get_vocab().items()}
    assert [ours[number] for number in range(len(ours))] == [theirs[number] for number in case.kept]


@pytest.mark.parametrize("name", ["byte-level", "byte fallback", "unigram"])
def test_any_text_is_encoded_without_loss(name, tmp_path):
    case = Case(tmp_path, KINDS[name]())
    pruned = case.pruned()
    for text in (OTHER, TEXT, "".join(map(chr, range(1, 400)))):
        found = pruned.decode(ids(pruned, text), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert found == text
        assert pruned.unk_token_id not in ids(pruned, text)


def test_fewer_tokens_than_the_text_has_are_the_most_frequent(tmp_path):
    whole = Case(tmp_path / "whole", vocabularies.byte_level())
    case = Case(tmp_path / "few", vocabularies.byte_level(), Wanted(size=len(whole.file.needed) + 10))
    pruned = case.pruned()
    assert len(pruned) == len(whole.file.needed) + 10
    assert len(ids(pruned, case.text.sample)) > len(ids(case.before, case.text.sample))
    assert pruned.decode(ids(pruned, TEXT), skip_special_tokens=True) == TEXT


def test_special_tokens_template_and_padding_survive(case):
    pruned, before = case.pruned(), case.before
    assert pruned.special_tokens_map == before.special_tokens_map
    assert [case.kept[number] for number in pruned.all_special_ids] == before.all_special_ids
    assert pruned.padding_side == before.padding_side == "left"
    chat = [{"role": "user", "content": "The river runs"}]
    assert pruned.apply_chat_template(chat, tokenize=False) == before.apply_chat_template(chat, tokenize=False)
    padded = pruned(["The", TEXT], padding=True)
    assert padded["input_ids"][0][0] == pruned.pad_token_id
    assert padded["attention_mask"][0][0] == 0
    assert ids(pruned, "mill")[0] == pruned.bos_token_id


def test_the_files_beside_it_are_rewritten_too(tmp_path):
    case = Case(tmp_path, vocabularies.byte_level())
    (case.source / "vocab.json").write_text(json.dumps(case.file.raw["model"]["vocab"]))
    (case.source / "merges.txt").write_text("#version: 0.2\n")
    (case.source / "added_tokens.json").write_text(json.dumps(case.file.added))
    (case.source / "tokenizer.model").write_bytes(b"\nold")
    (case.source / "LICENSE").write_text("terms")
    case.pruned()
    own = json.loads((case.target / "tokenizer.json").read_text())["model"]
    assert json.loads((case.target / "vocab.json").read_text()) == own["vocab"]
    merges = (case.target / "merges.txt").read_text().splitlines()
    assert merges == ["#version: 0.2", *(" ".join(merge) for merge in own["merges"])]
    assert json.loads((case.target / "added_tokens.json").read_text()) == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert not (case.target / "tokenizer.model").exists()
    assert (case.target / "LICENSE").read_text() == "terms"


def test_tokens_that_were_added_behind_the_vocabulary_get_its_new_end(tmp_path):
    made = vocabularies.byte_level()
    made.add_tokens(["<tool>", "<image>"])
    case = Case(tmp_path, made)
    pruned = case.pruned()
    assert pruned.convert_tokens_to_ids(["<tool>", "<image>"]) == [len(case.kept) - 2, len(case.kept) - 1]
    text = "The river<tool> runs"
    assert [case.kept[number] for number in ids(pruned, text)] == ids(case.before, text)


def test_a_tokenizer_that_cuts_otherwise_is_refused(tmp_path, monkeypatch):
    case = Case(tmp_path, vocabularies.byte_level())
    other = vocabularies.save(without_merges(case), tmp_path / "other")
    monkeypatch.setattr("llm_pruner.vocabulary.rewriting.load_tokenizer", lambda folder: other)
    with pytest.raises(PlanError, match="cuts text whose tokens all stay into others"):
        case.pruned()


def without_merges(case):
    raw = case.file.rewritten(case.new)
    raw["model"]["merges"] = []
    return Tokenizer.from_str(json.dumps(raw))


def test_a_tokenizer_of_other_ids_is_refused(tmp_path, monkeypatch):
    case = Case(tmp_path, vocabularies.byte_level())
    monkeypatch.setattr("llm_pruner.vocabulary.rewriting.load_tokenizer", lambda folder: case.before)
    with pytest.raises(PlanError, match="another id"):
        case.pruned()


def test_a_folder_without_tokenizer_json_gets_one(tmp_path):
    before = vocabularies.save(vocabularies.byte_level(), tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").unlink()
    file = whole_file(tmp_path / "source", before, tmp_path / "whole")
    assert file.tokens == {number: token for token, number in before.get_vocab().items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"post_processor": {"type": "Unheard"}}, "its post-processor 'Unheard' is not known"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}}}, "its model is 'WordLevel'"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "not of a form that is known"),
    ],
)
def test_a_tokenizer_json_that_cannot_be_pruned_is_named(change, message, tmp_path):
    before = vocabularies.save(vocabularies.byte_level(), tmp_path)
    raw = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw | change))
    with pytest.raises(PlanError, match=message) as caught:
        whole_file(tmp_path, before, tmp_path / "whole")
    assert "tokenizer.json" in str(caught.value)


def test_counts_are_of_the_whole_text(tmp_path):
    case = Case(tmp_path, vocabularies.byte_level(), text=LINES[3])
    assert case.text.counts == Counter(case.before(LINES[3], add_special_tokens=False)["input_ids"])
    assert case.text.covered(case.kept) == 1
