"""The model of fewer tokens, and the plan that tells of them."""

import pytest
import torch
from transformers import GenerationConfig

from llm_pruner import Ratio, Replay, ScoreAndCut, Target, prune
from llm_pruner.errors import UsageError
from llm_pruner.model.axes import VOCAB
from llm_pruner.model.size import size_of
from llm_pruner.shape.plan import Plan
from llm_pruner.vocabulary.cut import (
    COUNTS,
    VocabularyCut,
    matching_tokens,
    tokens_of,
    vocabulary_group,
    without_tokens,
)
from tests.support import tiny, vocabularies

KEPT = (0, 1, 4, *range(10, 50), 95)
CONFIG = {"bos_token_id": 1, "eos_token_id": 4}


def cut_of(case):
    model = tiny.model(case, **CONFIG)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[4, 95], pad_token_id=4)
    return VocabularyCut(model.config, KEPT), model


@pytest.mark.parametrize("case", tiny.CASES)
def test_logits_are_the_dense_models_at_the_tokens_that_stay(case):
    cut, model = cut_of(case)
    new = tiny.tokens() % len(KEPT)
    kept = torch.tensor(KEPT)
    expected = tiny.logits(model, kept[new])[..., kept]
    parameters = size_of(model).parameters
    narrow = cut.applied(model)
    assert torch.equal(tiny.logits(narrow, new), expected)
    assert narrow.config.vocab_size == len(KEPT)
    assert size_of(narrow).parameters == parameters - cut.removed[0]
    assert not narrow.training


@pytest.mark.parametrize("case", ["llama", "llama_tied"])
def test_rows_of_the_embeddings_and_of_the_head_go_and_the_tie_stays(case):
    cut, model = cut_of(case)
    names = [member.parameter for member in vocabulary_group(model).members]
    assert names == ["model.embed_tokens.weight", "lm_head.weight"][: 1 if "tied" in case else 2]
    narrow = cut.applied(model)
    tied = narrow.lm_head.weight is narrow.model.embed_tokens.weight
    assert tied == ("tied" in case)
    assert cut.removed[0] == (96 - len(KEPT)) * model.config.hidden_size * len(names)


def test_special_tokens_have_new_ids():
    cut, model = cut_of("llama")
    narrow = cut.applied(model)
    assert (narrow.config.bos_token_id, narrow.config.eos_token_id) == (1, 2)
    generation = narrow.generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, [2, 43], 2)
    assert (cut.dense.bos_token_id, cut.dense.vocab_size) == (1, 96)


def planned(how_much=None):
    """(the cut, the plan of the model of fewer tokens)."""
    cut, model = cut_of("llama")
    return cut, prune(cut.applied(model), how_much or Ratio(0.0), ScoreAndCut("magnitude")).plan


def test_the_plan_is_of_the_dense_model():
    cut, plan = planned()
    told = cut.told(plan)
    dense = size_of(tiny.model("llama"))
    assert (told.parameters_before, told.bytes_before) == (dense.parameters, dense.bytes)
    assert told.parameters_after == plan.parameters_after == dense.parameters - cut.removed[0]
    assert (told.before[VOCAB], told.widths_after()["vocab_size"]) == (96, len(KEPT))
    assert told.removed()["vocab_size"] == pytest.approx(1 - len(KEPT) / 96)
    assert told.config == {"vocab_size": len(KEPT), "eos_token_id": 2}
    assert told.importance == COUNTS
    assert "vocab_size" in told.table({"vocab_size": 0.5})
    assert "vocab_size" not in plan.table()


def test_other_units_keep_what_chose_them():
    cut, plan = planned(Ratio({"mlp": 0.5}))
    assert cut.told(plan).importance == "magnitude"


def test_the_plan_can_be_saved_and_replayed(tmp_path):
    cut, plan = planned(Ratio({"mlp": 0.5}))
    cut.told(plan).save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert tokens_of(loaded) == KEPT
    own = without_tokens(loaded)
    assert (own.before, own.after, own.units) == (plan.before, plan.after, plan.units)
    first = prune(cut.applied(cut_of("llama")[1]), Ratio({"mlp": 0.5}), ScoreAndCut("magnitude")).model
    again = prune(cut.applied(cut_of("llama")[1]), Replay(own)).model
    assert torch.equal(tiny.logits(first, tiny.tokens() % 40), tiny.logits(again, tiny.tokens() % 40))


def test_a_plan_without_tokens_is_left_alone():
    plan = planned()[1]
    assert tokens_of(plan) is None
    assert without_tokens(plan) is plan


def test_other_tokens_are_another_cut():
    config = tiny.config("llama")
    assert VocabularyCut(config, (0, 1)).digest != VocabularyCut(config, (0, 2)).digest


def test_a_shape_in_memory_has_no_vocabulary():
    for request in (lambda: Ratio({"vocab": 0.5}), lambda: prune(tiny.model("llama"), Target({"vocab_size": 48}))):
        with pytest.raises(UsageError, match="with its tokenizer"):
            request()


def test_tokens_of_one_tokenizer_are_found_in_another(tmp_path):
    large = vocabularies.save(vocabularies.byte_level(420), tmp_path / "large")
    small = vocabularies.save(vocabularies.byte_level(300), tmp_path / "small")
    found = matching_tokens(small, large)
    theirs = large.get_vocab()
    assert found == [theirs[token] for token, _ in sorted(small.get_vocab().items(), key=lambda item: item[1])]
    assert matching_tokens(large, small) is None
