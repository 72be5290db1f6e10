"""Perplexity: the definition, in chunks, for every family, within memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from llm_pruner.errors import RunError, UsageError
from llm_pruner.evaluation import perplexity as module
from llm_pruner.evaluation.head import PREFIX, body_of
from llm_pruner.evaluation.perplexity import Scorer, bits_per_byte, perplexity
from tests.support import tiny

# model_type → the scales of its logits
SCALED = {
    "granite": {"logits_scaling": 8.0},
    "granitemoe": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "hyperclovax": {"logits_scaling": 0.125},
    "falcon_h1": {"lm_head_multiplier": 0.125},
    "gemma2": {"final_logit_softcapping": 2.0},
}
SMALL = {
    "vocab_size": 96, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 96,
    "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
OWN = {
    "falcon_h1": {"mamba_d_ssm": 96, "mamba_n_heads": 12, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8},
    "granitemoe": {"num_local_experts": 4},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 48},
}


def random_model(model_type: str, **values):
    torch.manual_seed(0)
    values = {**SMALL, "num_key_value_heads": 4, "head_dim": 8, **OWN.get(model_type, {}), **values}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.2)
    return model.eval()


def by_definition(model, windows) -> float:
    """exp of the mean over windows of the mean next-token loss, from the model's own logits, one window at a time."""
    losses = []
    for window in windows:
        logits = tiny.logits(model, window[None])[0].double()
        losses.append(F.cross_entropy(logits[:-1], window[1:]).item())
    return math.exp(sum(losses) / len(losses))


@pytest.mark.parametrize("case", tiny.CASES)
def test_equals_the_definition_on_every_family(case, monkeypatch):
    monkeypatch.setattr(module, "LOGITS", 7 * 96)  # chunks of seven positions
    model, windows = tiny.model(case), tiny.tokens(5, 16)
    expected = by_definition(model, windows)
    assert perplexity(model, windows) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, windows, batch_size=2) == pytest.approx(expected, rel=1e-5)


def test_a_model_that_knows_nothing_has_the_vocabulary_as_perplexity():
    model = tiny.model("llama")
    model.lm_head.weight.data.zero_()
    assert perplexity(model, tiny.tokens(3, 9)) == pytest.approx(96, rel=1e-5)


def test_full_logits_are_never_held(monkeypatch):
    """But of the first few tokens, once, to see that it makes no difference."""
    monkeypatch.setattr(module, "LOGITS", 20 * 96)
    model, sizes = tiny.model("llama"), []
    model.lm_head.register_forward_hook(lambda _, __, logits: sizes.append(logits.numel()))
    perplexity(model, tiny.tokens(4, 60))
    assert max(sizes) <= 20 * 96
    assert sum(sizes) == (4 * 59 + 2 * PREFIX) * 96


def test_smaller_batches_when_memory_runs_out(monkeypatch):
    model, windows = tiny.model("llama"), tiny.tokens(7, 16)
    expected, summed_loss, sizes = perplexity(model, windows), Scorer.summed_loss, []

    def short_of_memory(scorer, batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return summed_loss(scorer, batch)

    monkeypatch.setattr(Scorer, "summed_loss", short_of_memory)
    assert perplexity(model, windows, batch_size=8) == pytest.approx(expected, rel=1e-6)
    assert sizes == [7, 4, 2, 2, 2, 1]


def test_out_of_memory_at_one_window_gives_advice(monkeypatch):
    """Wherever memory ends: in the model, the first time or later, or in Python."""
    model = tiny.model("llama")
    for error in (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), MemoryError()):
        for place in (model.model.layers[1].mlp, model.lm_head):

            def no_memory(*_, error=error):
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(place, "forward", no_memory)
                with pytest.raises(RunError, match="a window of 16 tokens does not fit in memory; use a smaller `max_"):
                    perplexity(model, tiny.tokens(2, 16))


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Scorer, "summed_loss", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        perplexity(tiny.model("llama"), tiny.tokens(2, 16))


def test_a_hopeless_model_is_infinite():
    model = tiny.model("llama")
    model.lm_head.weight.data[0, 0] = 1e9
    assert perplexity(model, tiny.tokens(2, 16)) == math.inf


def test_what_is_not_a_number_is_no_result():
    """The first tensor or module to blame is named, with the dtype that may help."""
    model = tiny.model("llama")
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(RunError, match=r"lm_head\.weight holds 1 values that are NaN or Inf"):
        perplexity(model, tiny.tokens(2, 16))
    model = tiny.model("llama", dtype=torch.float16)
    model.model.layers[1].mlp.up_proj.weight.data.mul_(60_000)
    expected = (
        r"before is not a number: model\.layers\.1\.mlp\.up_proj gives NaN or Inf, computed in float16; "
        "try `dtype=bfloat16` or float32"
    )
    with pytest.raises(RunError, match=expected):
        perplexity(model, tiny.tokens(2, 16), label="before")


@pytest.mark.parametrize(("rows", "length"), [(3, 1), (0, 16)])
def test_without_a_next_token_there_is_no_perplexity(rows, length):
    with pytest.raises(UsageError, match=f"{rows} windows of {length} tokens have no next token to predict"):
        perplexity(tiny.model("llama"), tiny.tokens(rows, length))


@pytest.mark.slow
@pytest.mark.parametrize("model_type", SCALED)
def test_what_a_class_does_behind_its_head_counts(model_type):
    """Scales that no other file of this package knows of, in chunks that cross windows."""
    model, windows = random_model(model_type, **SCALED[model_type]), tiny.tokens(5, 24)
    body, _ = body_of(model, windows[0])
    assert body is not None
    assert perplexity(model, windows) == pytest.approx(by_definition(model, windows), rel=1e-4)
    plain = random_model(model_type, **dict.fromkeys(SCALED[model_type], 1.0))
    assert perplexity(plain, windows) != pytest.approx(by_definition(model, windows), rel=0.01)


def test_a_class_that_calls_its_decoder_itself():
    model, windows = random_model("opt"), tiny.tokens(5, 24)
    assert body_of(model, windows[0])[0] is model.model.decoder
    assert perplexity(model, windows) == pytest.approx(by_definition(model, windows), rel=1e-5)


class Mixed(torch.nn.Module):
    """A head that looks at the token before as well, as no position alone can tell."""

    def __init__(self, head) -> None:
        super().__init__()
        self.weight, self.head = head.weight, head

    def forward(self, hidden):
        return self.head(hidden + hidden.roll(1, dims=1))


def test_a_head_that_mixes_positions_is_given_whole_windows(monkeypatch):
    model, windows = tiny.model("llama"), tiny.tokens(5, 24)
    model.lm_head = Mixed(model.lm_head)
    assert body_of(model, windows[0])[0] is None
    monkeypatch.setattr(module, "LOGITS", 7 * 96)
    assert perplexity(model, windows) == pytest.approx(by_definition(model, windows), rel=1e-5)


def test_the_model_is_as_it_was():
    """Also where accelerate has given an instance a forward of its own."""
    model, windows = tiny.model("llama"), tiny.tokens(2, 16)
    perplexity(model, windows)
    assert "forward" not in model.model.__dict__
    own = model.model.forward = model.model.forward
    perplexity(model, windows)
    assert model.model.forward is own


def test_bits_per_byte_do_not_depend_on_the_tokens():
    """A text of 12 bytes at 6 bits: in 3 tokens of 2 bits each, or in 6 tokens of 1 bit each."""
    assert bits_per_byte(4.0, 4.0) == bits_per_byte(2.0, 2.0) == 0.5
