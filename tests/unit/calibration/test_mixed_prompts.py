"""Prompts of several texts: each drawn as it would be alone, then mixed; and the model in the place of what is away."""

import pytest
import torch

from llm_pruner.calibration import prompts
from llm_pruner.calibration.mixtures import Source
from llm_pruner.calibration.prompts import calibration_prompts, draw, written_by
from llm_pruner.calibration.texts import HubError
from llm_pruner.calibration.windows import text_windows
from llm_pruner.errors import UsageError
from tests.support import tiny


class Letters:
    """A token for each character, by its place in the alphabet."""

    bos_token_id, eos_token_id, chat_template = 0, 1, None

    def __call__(self, text, verbose=False):
        return {"input_ids": [ord(letter) - 60 for letter in text]}


@pytest.fixture
def texts(tmp_path):
    """Three files, each of a letter of its own and of capital letters."""
    for letter in "abc":
        (tmp_path / letter).write_text("".join(f"{letter}{chr(65 + i % 26)}" for i in range(300)))
    return [str(tmp_path / letter) for letter in "abc"]


def kind(prompt: torch.Tensor) -> str:
    return next(chr(token + 60) for token in prompt.tolist() if chr(token + 60) in "abc")


def test_windows_of_a_text_are_those_that_it_gives_alone(texts):
    mixed = calibration_prompts([f"{texts[0]}=0.5", *texts[1:]], 16, 8, 3, Letters())
    for letter, path, count in zip("abc", texts, (8, 4, 4), strict=True):
        alone = text_windows(path, count, 8, 3, Letters())
        assert torch.equal(torch.stack([own for own in mixed if kind(own) == letter]), torch.stack(alone))
    assert {kind(prompt) for prompt in mixed[:4]} == set("abc")


def test_a_single_text_is_as_it_was(texts):
    alone = torch.stack(text_windows(texts[0], 16, 8, 3, Letters()))
    for data in (texts[0], texts[:1], f"{texts[0]}=1"):
        assert torch.equal(torch.stack(calibration_prompts(data, 16, 8, 3, Letters())), alone)


def test_tokens_of_any_text_are_checked(texts):
    known = max(int(own.max()) for own in calibration_prompts(texts, 12, 8, 0, Letters())) + 1
    calibration_prompts(texts, 12, 8, 0, Letters(), known)
    with pytest.raises(UsageError, match=f"the model knows {known - 1}"):
        calibration_prompts(texts, 12, 8, 0, Letters(), known - 1)


def test_the_model_writes_its_share(texts):
    model = tiny.model("llama")
    drawn = draw([texts[0], "self=0.25"], 8, 16, 0, Letters(), 96)
    assert (drawn.counts, drawn.to_write, drawn.sources[1]) == ([6, 2], 2, Source("self", 0.25))
    mixed = written_by(model, drawn).prompts
    assert [len(prompt) for prompt in mixed] == [16] * 8
    assert sum(int(prompt[0]) == 0 for prompt in mixed) == 2
    again = calibration_prompts([texts[0], "self=0.25"], 8, 16, 0, Letters(), 96, model)
    assert torch.equal(torch.stack(mixed), torch.stack(again))
    with pytest.raises(UsageError, match="the model itself writes the text called self; give `model`"):
        calibration_prompts("self", 8, 16, 0, Letters(), 96)


@pytest.fixture
def away(monkeypatch):
    """The names in this set are not given by the hub; other data sets are a file."""
    names: set[str] = set()

    def windows(name, count, seq_len, seed, tokenizer):
        if name in names:
            raise HubError(f"{name} could not be loaded from the hub")
        return [torch.full((seq_len,), 5)] * count

    monkeypatch.setattr(prompts, "text_windows", windows)
    return names


def test_the_model_writes_in_place_of_texts_of_the_usual_mixture_that_the_hub_does_not_give(away):
    away |= {"c4", "instructions"}
    drawn = draw("mix", 12, 16, 0, Letters(), replaceable=True)
    assert [(own.data, round(own.share, 3)) for own in drawn.sources] == [("wikitext2", 0.333), ("self", 0.667)]
    assert (drawn.counts, drawn.missing) == ([4, 8], ("c4", "instructions"))
    written = written_by(tiny.model("llama"), drawn).prompts
    assert sum(bool((prompt == 5).all()) for prompt in written) == 4
    assert len(written) == 12


def test_a_text_that_was_named_is_not_replaced(away):
    away |= {"c4"}
    with pytest.raises(HubError, match="c4 could not be loaded"):
        draw(["wikitext2", "c4"], 12, 16, 0, Letters())


def test_without_any_text_the_model_is_not_taken_instead(away):
    away |= {"wikitext2", "c4", "instructions"}
    with pytest.raises(HubError, match="instructions could not be loaded"):
        draw("mix", 12, 16, 0, Letters(), replaceable=True)


def test_more_text_than_is_drawn_is_refused_of_the_model_too():
    with pytest.raises(UsageError, match="nsamples 1,000,000 × calibration_seq_len 2,048 tokens"):
        draw("self", 10**6, 2048, 0, Letters())
