"""Text that a model writes itself is sampled from its own distribution."""

import pytest
import torch
from safetensors.torch import save_file

from llm_pruner.calibration import memory
from llm_pruner.calibration.self_written import kept, self_written
from llm_pruner.errors import RunError, UsageError
from tests.support import tiny


class Tokens:
    """A tokenizer of the tiny models, perhaps with a chat template; a token is a word, `t7` the seventh."""

    def __init__(self, bos=0, eos=1, chat_template=None):
        self.bos_token_id, self.eos_token_id, self.chat_template = bos, eos, chat_template

    def __call__(self, text, add_special_tokens, verbose):
        assert not add_special_tokens
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert (tokenize, add_generation_prompt) == (False, True)
        return self.chat_template.format(*[own["content"] for own in messages])


def expected(model, window: torch.Tensor, numbers: torch.Tensor, start: int = 1) -> list[int]:
    """By the definition: the first token whose cumulative probability, given all before, exceeds the number."""
    with torch.no_grad():
        chances = model(input_ids=window[None], use_cache=False).logits[0].double().softmax(-1)
    return [
        next(t for t, total in enumerate(chances[place - 1].cumsum(0)) if total > numbers[place])
        for place in range(start, len(window))
    ]


@pytest.mark.parametrize("case", ["llama", "mistral", "gemma3_text", "gpt2"])
def test_tokens_are_sampled_from_the_whole_distribution_given_all_tokens_before(case):
    """By the cache and in a batch, as without: sliding windows of 5 and 7 are passed."""
    model = tiny.model(case)
    windows = self_written(model, Tokens(), 3, 24, seed=4)
    numbers = torch.rand(3, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for window, own in zip(windows, numbers, strict=True):
        assert window.dtype == torch.long
        assert window[0] == 0
        assert window[1:].tolist() == expected(model, window, own)


def test_frequencies_are_the_probabilities():
    """Of the first token, over 4,000 windows; the largest deviation is under four standard errors."""
    model = tiny.model("llama", vocab_size=12)
    first = torch.stack(self_written(model, Tokens(), 4000, 2, seed=0))[:, 1]
    with torch.no_grad():
        chances = model(torch.tensor([[0]])).logits[0, -1].softmax(-1)
    found = torch.bincount(first, minlength=12) / 4000
    assert ((found - chances).abs() < 4 * (chances * (1 - chances) / 4000).sqrt()).all()


def test_windows_do_not_depend_on_how_many_are_sampled_at_once(monkeypatch):
    model = tiny.model("llama")
    whole = torch.stack(self_written(model, Tokens(), 5, 16, seed=0))
    monkeypatch.setitem(memory.TOKENS, "cpu", 4)
    assert torch.equal(torch.stack(self_written(model, Tokens(), 5, 16, seed=0)), whole)
    assert not torch.equal(torch.stack(self_written(model, Tokens(), 5, 16, seed=1)), whole)


def test_without_memory_for_a_batch_smaller_ones_are_sampled(monkeypatch, caplog):
    model, forward, rows = tiny.model("llama"), tiny.model("llama").forward, []

    def bounded(**given):
        rows.append(len(given["input_ids"]))
        if rows[-1] > 2:
            raise RuntimeError("out of memory")
        return forward(**given)

    whole = torch.stack(self_written(model, Tokens(), 5, 8, seed=0))
    monkeypatch.setattr(model, "forward", bounded)
    assert torch.equal(torch.stack(self_written(model, Tokens(), 5, 8, seed=0)), whole)
    assert rows[:2] == [5, 2]
    assert "batches of 2 windows" in caplog.text


def test_a_window_begins_with_eos_where_there_is_no_bos():
    model = tiny.model("llama")
    assert self_written(model, Tokens(bos=None, eos=7), 1, 4, seed=0)[0][0] == 7
    with pytest.raises(UsageError, match="neither a BOS nor an EOS token"):
        self_written(model, Tokens(bos=None, eos=None), 1, 4, seed=0)
    with pytest.raises(UsageError, match="gives token 96, the model knows 96"):
        self_written(model, Tokens(bos=96), 1, 4, seed=0)


def test_every_second_window_of_an_instruct_model_begins_as_a_turn_of_the_user():
    model = tiny.model("llama")
    windows = self_written(model, Tokens(chat_template="t8 t9 t10 {}"), 5, 12, seed=0)
    assert [own[0].item() for own in windows] == [0, 8, 0, 8, 0]
    assert windows[1][:3].tolist() == windows[3][:3].tolist() == [8, 9, 10]
    numbers = torch.rand(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert windows[3][3:].tolist() == expected(model, windows[3], numbers[3], start=3)


def test_the_template_leads_from_the_end_of_the_question_to_the_answer():
    """Once in a window, however often the token that ends the question is sampled."""
    model = tiny.model("llama", vocab_size=16)
    windows = self_written(model, Tokens(chat_template="t8 {} t3 t12 t13 t14"), 40, 48, seed=0)
    numbers = torch.rand(40, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ended = 0
    for place in range(1, 40, 2):
        tokens = windows[place].tolist()
        wanted = [8, *expected(model, windows[place], numbers[place])]
        end = wanted.index(3) if 3 in wanted else len(tokens)
        wanted[end : end + 4] = [3, 12, 13, 14][: len(tokens) - end]
        assert tokens == wanted
        ended += tokens.count(3) > 1
    assert ended > 5


@pytest.mark.parametrize("template", ["{}", "t8 t9 t10 t11 {}", "t8 {0[0]} {1}"])
def test_a_template_that_leaves_no_room_or_takes_no_user_alone_is_left_out(template):
    windows = self_written(tiny.model("llama"), Tokens(chat_template=template), 2, 4, seed=0)
    assert [own[0].item() for own in windows] == [0, 0]


def test_logits_that_are_not_finite_end_it():
    model = tiny.model("llama")
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    with pytest.raises(RunError, match="NaN or Inf on text that the model writes itself, computed in float32"):
        self_written(model, Tokens(), 2, 4, seed=0)


def test_windows_that_are_kept_are_not_sampled_again(tmp_path):
    path, asked = tmp_path / "work" / "self.safetensors", []

    def write():
        asked.append(True)
        return [torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6])]

    first = torch.stack(kept(path, write, 2, 3))
    assert torch.equal(torch.stack(kept(path, write, 2, 3)), first)
    assert len(asked) == 1
    for damage in (lambda: path.write_bytes(b"x"), lambda: save_file({"windows": torch.ones(2, 3)}, path)):
        damage()
        assert torch.equal(torch.stack(kept(path, write, 2, 3)), first)
    assert len(asked) == 3
    assert len(list(path.parent.glob("*.damaged*"))) == 2
