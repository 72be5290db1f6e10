"""Statistics of weights."""

import torch

from llm_pruner.calibration.weights import Weights


def test_large_finite_weights_are_not_called_broken():
    weights = Weights({"w": torch.full((4, 4), 3e38)})
    weights.check_finite("w")


def test_squared_sums_in_pieces_are_those_of_the_whole(monkeypatch):
    from llm_pruner.calibration import weights as module

    weight = torch.randn(37, 11)
    monkeypatch.setattr(module, "CHUNK", 50)
    rows, columns = Weights({"w": weight}).squared_sums("w")
    torch.testing.assert_close(rows, weight.square().sum(1))
    torch.testing.assert_close(columns, weight.square().sum(0))
