"""Weight times gradient: by hand, and against autograd through the whole model."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llm_pruner.calibration.gradients import Gradients, weight_gradient_products
from llm_pruner.errors import RunError
from tests.support import tiny


def batches() -> list[torch.Tensor]:
    """Of different lengths and different numbers of prompts."""
    return [tiny.tokens(rows=3, length=12, seed=1), tiny.tokens(rows=1, length=17, seed=2)]


def by_autograd(model) -> dict[str, torch.Tensor]:
    """w·g in float64, through the graph of the whole model."""
    model = model.double()
    total = sum(
        F.cross_entropy(
            model(batch, use_cache=False).logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
        )
        for batch in batches()
    )
    loss = total / sum(batch[:, 1:].numel() for batch in batches())
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(named.values()))
    return {name: named[name].detach() * gradient for name, gradient in zip(named, gradients, strict=True)}


def assert_products(found, expected: dict[str, torch.Tensor], tolerance: float):
    """`tolerance`: relative to the largest Σ |w·g| of the axis."""
    assert list(found) == list(expected)
    for name, product in expected.items():
        assert len(found[name].absolute) == len(found[name].signed) == product.dim()
        for axis in range(product.dim()):
            rows = product.movedim(axis, 0).reshape(product.shape[axis], -1)
            absolute = rows.abs().sum(1)
            close = {
                "rtol": 0,
                "atol": tolerance * absolute.max().item(),
                "msg": lambda text, name=name: f"{name}: {text}",
            }
            torch.testing.assert_close(found[name].absolute[axis], absolute.float(), **close)
            torch.testing.assert_close(found[name].signed[axis], rows.sum(1).float(), **close)


@pytest.mark.slow
@pytest.mark.parametrize("case", tiny.CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.1)])
def test_is_autograd_through_the_whole_model(case, dtype, tolerance):
    """RMSNorms round to float32 in float64 models too."""
    model = tiny.model(case, dtype=dtype)
    found = weight_gradient_products(model, batches())
    assert all(tensor.dtype == torch.float32 for p in found.values() for tensor in (*p.absolute, *p.signed))
    assert_products(found, by_autograd(model), tolerance)


def test_by_hand():
    """Two batches: g = (outer product with 1 2) · 1 and · -3, so g = -2 -4 in both rows, halved: -1 -2."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0], [3.0, 4.0]]))
    bias = nn.Parameter(torch.tensor([5.0, 6.0]))
    gradients = Gradients({"weight": weight, "bias": bias}, predicted=2)
    for sign in (1.0, -3.0):
        hidden = torch.tensor([1.0, 2.0], requires_grad=True)
        (downstream,) = gradients.add(F.linear(hidden, weight), torch.full((2,), sign), [weight, bias], [hidden])
        assert downstream.tolist() == [4.0 * sign, 2.0 * sign]
    gradients.finish(["weight", "bias"])
    found = gradients.products["weight"]  # w·g = -1 4 | -3 -8
    assert [sums.tolist() for sums in found.absolute] == [[5.0, 11.0], [4.0, 12.0]]
    assert [sums.tolist() for sums in found.signed] == [[3.0, -11.0], [-4.0, -4.0]]
    unused = gradients.products["bias"]
    assert [sums.tolist() for sums in unused.absolute + unused.signed] == [[0.0, 0.0], [0.0, 0.0]]


def test_batches_are_summed_in_float32():
    """In bfloat16, 256 + 1 is 256."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    gradients = Gradients({"weight": weight}, predicted=1)
    for factor in (256, 1, 1, 1):
        gradients.add(weight * factor, None, [weight])
    gradients.finish(["weight"])
    assert gradients.products["weight"].signed[0].item() == 259


def test_model_stays_as_it_was():
    model = tiny.model("llama_tied")
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 7.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        found = weight_gradient_products(model, batches())
    assert [parameter.requires_grad for parameter in parameters] == [i % 2 == 1 for i in range(len(parameters))]
    assert [i for i, parameter in enumerate(parameters) if parameter.grad is not None] == [1]
    assert (parameters[1].grad == 7.0).all()
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert_products(found, by_autograd(model.requires_grad_(True)), 1e-5)


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_weight_that_is_nan_is_named(name):
    model = tiny.model("llama")
    model.get_parameter(name).data.view(-1)[3] = float("nan")
    model.requires_grad_(False)
    with pytest.raises(RunError, match=name):
        weight_gradient_products(model, batches())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_gradient_that_is_not_finite_is_named():
    model = tiny.model("llama")
    model.model.layers[1].mlp.gate_proj.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RunError, match=r"model\.layers\.1\.mlp\.gate_proj\.weight"):
        weight_gradient_products(model, batches())


class Saved:
    """A tensor that an autograd graph keeps."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def test_memory_does_not_grow_with_the_layers(monkeypatch):
    """Neither the graph that is alive at a time nor the gradients that wait to be finished."""

    def peaks(layers: int) -> tuple[int, int]:
        alive: weakref.WeakSet[Saved] = weakref.WeakSet()
        graph, waiting = [], []

        def pack(tensor):
            saved = Saved(tensor)
            alive.add(saved)
            graph.append(len(alive))
            return saved

        finish = Gradients.finish
        monkeypatch.setattr(
            Gradients, "finish", lambda self, names: (waiting.append(len(self._sums)), finish(self, names))
        )
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            weight_gradient_products(tiny.model("qwen2", num_hidden_layers=layers), batches())
        monkeypatch.undo()
        return max(graph), max(waiting)

    assert peaks(2) == peaks(5)
