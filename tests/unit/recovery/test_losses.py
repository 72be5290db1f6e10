"""What a recovery minimises, against formulas written out."""

import math

import pytest
import torch

from llm_pruner.recovery.losses import fit_maps, hidden_loss, matched, text_loss
from tests.support import tiny


def test_text_loss_is_minus_the_log_probability():
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])
    found = text_loss(logits, torch.tensor([1, 1]))
    assert torch.allclose(found, torch.tensor([math.log(4 / 3), math.log(5.0)]))


def test_the_teachers_states_are_those_behind_the_students_layers():
    states = [torch.tensor(float(i)) for i in range(7)]  # embeddings, then six layers
    assert [int(one) for one in matched(states, list(range(6)))] == [1, 2, 3, 4, 5, 6]
    assert [int(one) for one in matched(states, [0, 1, 4, 5])] == [1, 4, 5, 6]  # layers 2 and 3 are gone


def test_hidden_loss_is_relative():
    wanted = torch.tensor([[[3.0, 4.0]]])
    found = torch.tensor([[[3.0, 5.0]]])
    assert hidden_loss([found, found], [wanted, found], [None, None]).item() == pytest.approx((1 / 25 + 0) / 2)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    assert hidden_loss([found], [wanted], [swap]).item() == pytest.approx((1 + 4) / 25)


def test_maps_between_streams_of_different_widths():
    """A student whose stream is a part of the teacher's is explained by it: the fitted maps leave nothing over."""
    teacher, student = tiny.model("llama"), tiny.model("llama")
    batches = [torch.randint(teacher.config.vocab_size, (2, 16)) for _ in range(8)]
    assert fit_maps(student, teacher, batches, [0, 1]) == [None, None]

    narrow = torch.randn(teacher.config.hidden_size, 8)

    class Part(torch.nn.Module):
        device = torch.device("cpu")
        config = type("Config", (), {"hidden_size": 8})

        def __call__(self, **read):
            states = teacher(**read).hidden_states
            return type("Outputs", (), {"hidden_states": [state @ narrow for state in states]})

    maps = fit_maps(Part(), teacher, batches, [0, 1])
    assert [tuple(one.shape) for one in maps] == [(teacher.config.hidden_size, 8)] * 2
    ids = torch.randint(teacher.config.vocab_size, (2, 16))
    with torch.no_grad():
        wanted = teacher(input_ids=ids, output_hidden_states=True).hidden_states[1:]
        found = [state @ narrow for state in wanted]
    fitted = hidden_loss(found, wanted, maps).mean()
    assert fitted < 0.01 < 0.5 < hidden_loss(found, wanted, [torch.randn(narrow.shape)] * 2).mean()
