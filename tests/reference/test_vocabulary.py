"""The vocabulary of a trained model, by real text."""

import math

import pytest

import llm_pruner
from llm_pruner.config.prune import PruneOptions
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.vocabulary.choice import Wanted, choose, counted
from llm_pruner.vocabulary.tokenizer_file import TokenizerFile


@pytest.fixture
def texts(shared, tmp_path):
    """(a text to count tokens in, another one to score on)."""
    for name, length in (("valid", 200_000), ("test", 4_000)):
        found = (shared / "data" / "wikitext-2" / f"{name}.txt").read_text(encoding="utf-8")[:length]
        (tmp_path / f"{name}.txt").write_text(found, encoding="utf-8")
    return str(tmp_path / "valid.txt"), str(tmp_path / "test.txt")


@pytest.mark.shared
def test_the_most_frequent_tokens_are_nearly_all_of_a_text(shared, texts):
    model = shared / "models" / "llama-6m"
    file, tokenizer = TokenizerFile.read(model), load_tokenizer(model)
    text = counted([texts[0]], tokenizer)
    kept = choose(file, text.counts, (), 4096, Wanted(ratio=0.3))
    assert len(kept) == 2880
    assert 0.97 < text.covered(kept) < 1
    # those of the lowest ids are not the most frequent ones of this text
    assert text.covered(kept) > text.covered(range(2880)) + 0.005
    assert all(set(file.with_parts(number)) <= set(kept) for number in kept)


@pytest.mark.shared
def test_bits_per_byte_hardly_grow_when_rare_tokens_go(shared, texts):
    report = llm_pruner.prune_checkpoint(
        PruneOptions(
            model=str(shared / "models" / "llama-6m"),
            prune="vocab=0.3",
            vocab_data=texts[0],
            eval_data=texts[1],
            max_seq_len=128,
            dtype="float32",
            no_save=True,
        )  # fmt: skip
    )
    bits = report.bits_per_byte
    assert bits.before < bits.after < 1.1 * bits.before
    sizes = report.vocabulary.bytes_per_token
    assert 0.9 * sizes.before < sizes.after < sizes.before
    assert math.log2(report.perplexity.after) / sizes.after == pytest.approx(bits.after)
