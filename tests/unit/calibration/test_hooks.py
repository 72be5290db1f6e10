"""Hooks see what goes in and out, and are gone afterwards, whatever happens."""

import pytest
import torch
from torch import nn

from llm_pruner.calibration.hooks import Hooks


def test_inputs_and_outputs_are_seen_while_the_context_lasts():
    layer, seen = nn.Linear(2, 3), []
    x = torch.ones(1, 2)
    with Hooks() as hooks:
        hooks.on_input(layer, lambda given: seen.append(given))
        hooks.on_output(layer, lambda output: seen.append(output))
        y = layer(x)
    layer(x)
    assert len(seen) == 2
    assert seen[0] is x
    assert seen[1] is y


def test_what_is_returned_takes_the_place_of_an_output_but_not_of_an_input():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    plain = layer(x)
    with Hooks() as hooks:
        hooks.on_input(layer, lambda given: given * 0)
        assert torch.equal(layer(x), plain)
        hooks.on_output(layer, lambda output: output + 1)
        assert torch.equal(layer(x), plain + 1)


def test_hooks_are_gone_after_an_exception():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)

    def fail(given):
        raise RuntimeError("it failed")

    with Hooks() as hooks:
        hooks.on_input(layer, fail)
        with pytest.raises(RuntimeError, match="it failed"):
            layer(x)
    assert not layer._forward_pre_hooks


def test_a_replaced_forward_comes_back_whether_it_was_the_class_s_or_the_instance_s():
    plain, wrapped, x = nn.Linear(2, 2), nn.Linear(2, 2), torch.ones(1, 2)
    own = wrapped.forward = lambda given: given - 1
    for layer in (plain, wrapped):
        with Hooks() as hooks:
            hooks.replace(layer, lambda given: given + 1)
            assert torch.equal(layer(x), x + 1)
    assert "forward" not in plain.__dict__
    assert wrapped.forward is own
