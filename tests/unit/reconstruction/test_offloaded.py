"""A reconstruction's streams wait in the host's memory: seen without a GPU, nothing computes with them there."""

import pytest
import torch

from llm_pruner.calibration import layerwise as module
from llm_pruner.reconstruction import layer as one
from llm_pruner.reconstruction import reconstruct as whole
from tests.support import tiny
from tests.support.reconstructing import method_of

HARMLESS = {"to", "reshape", "split", "__getitem__", "__get__", "size", "index_fill", "isfinite"}


class Aside(torch.Tensor):
    """What is far from the layer: it can be moved, cut to pieces and looked at."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function.__name__ in HARMLESS, f"{function.__name__} of a stream that was put aside"
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        if function.__name__ in ("to", "isfinite"):
            return result.as_subclass(torch.Tensor)
        if isinstance(result, tuple) and not isinstance(result, torch.Size):
            return tuple(part.as_subclass(cls) for part in result)
        return result.as_subclass(cls) if isinstance(result, torch.Tensor) else result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "asked"),
    [("llama", {"pruning_ratio": 0.5}), ("llama_tied", {"pruning_ratio": 0.5}), ("gpt2", {"pruning_ratio": 0.5}),
     ("gpt_neox", {"prune": "mlp=0.3"}), ("gemma3_text", {"prune": "heads=0.5,mlp=0.5"}),
     ("llama", {"target": "num_hidden_layers=1"})],
)  # fmt: skip
def test_streams_are_moved_before_anything_is_computed(case, asked, monkeypatch):
    expected = method_of(tiny.model(case), epochs=1, **asked)
    count = []

    def offloaded(hidden):
        assert not isinstance(hidden, Aside)
        count.append(1)
        return hidden.as_subclass(Aside)

    for own in (module, whole, one):
        monkeypatch.setattr(own, "offloaded", offloaded)
    found = method_of(tiny.model(case), epochs=1, **asked)
    assert count
    assert found.notes == expected.notes
    assert torch.equal(tiny.logits(found.model), tiny.logits(expected.model))
