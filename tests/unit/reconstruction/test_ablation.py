"""The loss without each part, measured from the layer on that it is in, is that of the whole model without it."""

import contextlib
import math

import pytest
import torch
import torch.nn.functional as F

from llm_pruner.calibration.hooks import Hooks
from llm_pruner.errors import RunError
from llm_pruner.model.axes import HEADS, KV_HEADS, MLP
from llm_pruner.model.layers import decoder_layers
from llm_pruner.model.trace import trace_groups
from llm_pruner.reconstruction import ablation
from llm_pruner.reconstruction.ablation import Ablation, Part, first_tokens, kv_group_parts, whole_parts
from tests.support import tiny

BATCHES = [tiny.tokens(2, 9, seed=3), tiny.tokens(1, 5, seed=4)]
PARTS = {"self_attn": HEADS, "attn": HEADS, "attention": HEADS, "mlp": MLP}


@torch.no_grad()
def loss(model) -> float:
    """Of the whole model, by whole logits in float64."""
    losses = [
        F.cross_entropy(model(ids).logits[:, :-1].double().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        for ids in BATCHES
    ]
    return torch.cat(losses).mean().item()


def loss_without(model, *removed) -> float:
    """With some modules, (axis, layer), replaced by ones that give zeros."""
    with Hooks() as hooks:
        for axis, layer in removed:
            for name, module in decoder_layers(model)[layer].named_children():
                if PARTS.get(name) == axis:
                    hooks.on_output(
                        module,
                        lambda out: (
                            (torch.zeros_like(out[0]), None) if isinstance(out, tuple) else torch.zeros_like(out)
                        ),
                    )
        return loss(model)


@pytest.mark.parametrize("case", tiny.CASES)
def test_every_attention_and_mlp_of_every_family(case):
    model = tiny.model(case)
    parts = whole_parts(model, trace_groups(model), HEADS, MLP)
    assert [(part.axis, part.layer) for part in parts] == [(HEADS, 0), (MLP, 0), (HEADS, 1), (MLP, 1)]
    with Ablation(model, BATCHES) as removal:
        assert removal.loss() == pytest.approx(loss(model), rel=1e-5)
        found = removal.losses_without(parts)
    expected = [loss_without(model, (part.axis, part.layer)) for part in parts]
    assert found == pytest.approx(expected, rel=1e-5)
    assert len({round(value, 4) for value in [*expected, loss(model)]}) == 5, "each of them matters"


@pytest.mark.parametrize("case", ["llama", "phi3", "llama_multi_head", "gpt_neox"])
def test_kv_groups_go_with_their_query_heads(case):
    model = tiny.model(case)
    parts = kv_group_parts(dict(model.named_parameters()), trace_groups(model))
    config = model.config
    groups = getattr(config, "num_key_value_heads", config.num_attention_heads)
    assert [(part.layer, part.unit) for part in parts] == [(layer, unit) for layer in (0, 1) for unit in range(groups)]
    assert {part.axis for part in parts} == {KV_HEADS}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with Ablation(model, BATCHES) as removal:
        found = removal.losses_without(parts)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    last = parts[-1]
    layer = decoder_layers(model)[1]
    projection = layer.attention.dense if case == "gpt_neox" else layer.self_attn.o_proj
    width = projection.weight.shape[1] // groups
    projection.weight.data[:, last.unit * width :] = 0
    assert found[-1] == pytest.approx(loss(model), rel=1e-5)
    assert found[-1] != pytest.approx(loss_without(model, (HEADS, 1)), rel=1e-5)


def test_parts_that_are_gone_stay_gone_until_the_end():
    model = tiny.model("llama", num_hidden_layers=3)
    parts = whole_parts(model, trace_groups(model), HEADS)
    with Ablation(model, BATCHES) as removal:
        losses = removal.losses_without(parts)
        first = removal.remove(parts, losses)[0]
        left = removal.left(parts)
        assert left == [part for part in parts if part is not first]
        again = removal.losses_without(left)
        assert again == pytest.approx(
            [loss_without(tiny.model("llama", num_hidden_layers=3), (HEADS, first.layer), (HEADS, part.layer))
             for part in left], rel=1e-5,
        )  # fmt: skip
        removal.remove(left, again)
        assert removal.losses == [min(losses), min(again)]
        assert removal.loss() == pytest.approx(min(again), rel=1e-5)
        assert removal.perplexities[-1] == pytest.approx(math.exp(min(again)), rel=1e-5)
    assert loss(model) == pytest.approx(loss(tiny.model("llama", num_hidden_layers=3)), rel=1e-12)


def chosen(losses: list[float], number: int = 1) -> list[int]:
    """The numbers of the parts that go when these are the losses without them."""
    parts = [Part(HEADS, layer, contextlib.nullcontext) for layer in range(len(losses))]
    with Ablation(tiny.model("llama"), BATCHES) as removal:
        return [part.layer for part in removal.remove(parts, losses, number)]


def test_of_equal_losses_the_first_part_goes():
    assert chosen([3.0, 2.0, 2.0]) == [1]
    # R1's example: the two best of two layers of two groups
    assert chosen([10.0, 12.0, 11.0, 13.0], 2) == [0, 2]


def test_a_loss_that_is_no_number_never_wins(monkeypatch):
    model = tiny.model("llama")
    parts = whole_parts(model, trace_groups(model), HEADS)
    with Ablation(model, BATCHES) as removal:
        monkeypatch.setattr(removal, "_from", lambda layer, stream: [math.nan, 5.0][layer])
        assert removal.losses_without(parts) == [math.inf, 5.0]


def test_where_no_loss_is_finite_the_module_is_named():
    model = tiny.model("llama")
    decoder_layers(model)[1].mlp.down_proj.register_forward_hook(lambda *_: torch.tensor(math.nan))
    parts = whole_parts(model, trace_groups(model), HEADS)
    with (
        Ablation(model, BATCHES) as removal,
        pytest.raises(RunError, match=r"model\.layers\.1\.mlp\.down_proj gives NaN or Inf"),
    ):
        removal.remove(parts, removal.losses_without(parts))


def test_logits_are_made_of_some_positions_at_a_time(monkeypatch):
    model = tiny.model("gemma3_text")
    monkeypatch.setattr("llm_pruner.reconstruction.logits.LOGITS", 2 * 96 * 3)
    widths = []
    original = ablation.logits_of

    def watched(model, ids, hidden):
        widths.append(ids.numel())
        return original(model, ids, hidden)

    monkeypatch.setattr(ablation, "logits_of", watched)
    with Ablation(model, BATCHES) as removal:
        assert removal.loss() == pytest.approx(loss(model), rel=1e-5)
    assert widths == [6, 6, 4, 4]


@pytest.mark.parametrize(("tokens", "number"), [(None, 3), (1, 1), (8, 1), (9, 2), (1000, 3)])
def test_the_first_prompts_that_have_so_many_tokens(tokens, number):
    prompts = [*tiny.tokens(3, 8)]
    found = first_tokens(prompts, tokens)
    assert len(found) == number
    assert all(one is other for one, other in zip(found, prompts))
