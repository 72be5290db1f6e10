"""Ids of tokens in configurations."""

import json

from llm_pruner.vocabulary.ids import named_in, renumbered, special_tokens
from tests.support import tiny

NEW = {2: 0, 5: 1, 9: 2}


def test_special_tokens_are_those_that_fields_name():
    values = {
        "bos_token_id": 2,
        "eos_token_id": [5, 9],
        "pad_token_id": None,
        "vocab_size": 11,
        "use_cache_token_id": True,
    }
    assert named_in(values) == {2, 5, 9}


def test_the_generation_config_names_some_too(tmp_path):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    config = tiny.config("llama", bos_token_id=3, eos_token_id=4)
    assert special_tokens(config, str(tmp_path)) == {3, 4, 7, 8}
    assert special_tokens(config, str(tmp_path / "none")) == {3, 4}


def test_ids_become_new_ones():
    values = {"bos_token_id": 2, "eos_token_id": [5, 9], "pad_token_id": None, "decoder_start_token_id": 9, "top_k": 5}
    assert renumbered(values, NEW) == {"bos_token_id": 0, "eos_token_id": [1, 2], "decoder_start_token_id": 2}


def test_what_names_a_token_that_is_gone_is_left_out():
    values = {
        "pad_token_id": 3, "eos_token_id": [5, 7], "suppress_tokens": [1, 3], "begin_suppress_tokens": [2, 1],
        "bad_words_ids": [[2, 5], [2, 3]], "sequence_bias": [[[2], 1.0]],
    }  # fmt: skip
    assert renumbered(values, NEW) == {
        "pad_token_id": None, "eos_token_id": [1], "suppress_tokens": None, "begin_suppress_tokens": [0],
        "bad_words_ids": [[0, 1]], "sequence_bias": None,
    }  # fmt: skip


def test_what_does_not_change_is_not_told():
    assert renumbered({"bos_token_id": 0, "eos_token_id": 1}, {0: 0, 1: 1}) == {}
