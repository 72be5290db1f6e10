"""What the tests of sparse inputs share: every pattern and method, and a calibrated layer of channels of all sizes."""

import itertools

import numpy as np
import torch

from llm_pruner.config.recipe import Recipe
from llm_pruner.sparsity.calibration import Seen, measure
from llm_pruner.sparsity.linear import SparseLinear
from tests.support.sparse_reference import output

PATTERNS = {
    "2:4": {"n": 2, "m": 4}, "8:16": {"n": 8, "m": 16}, "3:7, short last group": {"n": 3, "m": 7},
    "half": {"ratio": 0.5}, "threshold": {"ratio": 0.7, "select": "threshold"},
}  # fmt: skip
METHODS = [
    {"transform": transform, "criterion": criterion, "scaling": scaling, "causal": causal}
    for transform, criterion, scaling, causal in itertools.product(
        ("none", "variance", "shift", "learnable"), ("magnitude", "wanda", "l"), (False, True), (False, True)
    )
    if causal <= (transform == "variance" or criterion == "l")
]
PERMUTED = {"transform": "learnable", "criterion": "wanda", "scaling": True, "permutation": True}
INPUTS, OUTPUTS = 48, 20


def legal(pattern: str, method: dict) -> dict:
    """The method as it can go with the pattern: l with a threshold has to be causal, only n:m can be permuted."""
    causal = method.get("causal", False) or pattern == "threshold" and method["criterion"] == "l"
    return {
        **method,
        "causal": causal,
        "permutation": method.get("permutation", False) and "ratio" not in PATTERNS[pattern],
    }


def layer_of(recipe: Recipe, dtype=torch.float64, seed: int = 0, tokens: int = 40):
    """(sparse layer, calibration text [tokens, in], its η and v or None): channels of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.nn.Linear(INPUTS, OUTPUTS, dtype=torch.float64)
    sizes = 10 ** torch.linspace(-1, 1, INPUTS, dtype=torch.float64)[torch.randperm(INPUTS, generator=generator)]
    text = torch.randn(tokens, INPUTS, generator=generator, dtype=torch.float64) * sizes + 0.3
    with torch.no_grad():
        dense.weight.copy_(torch.randn(OUTPUTS, INPUTS, generator=generator, dtype=torch.float64))
        dense.weight.div_(sizes.sqrt())
    layer = SparseLinear(dense.to(dtype), recipe).eval()
    layer.sparsity.double()  # its float32 would decide ties otherwise than the reference
    seen = Seen(tokens)
    seen.add(text.to(dtype))
    with torch.no_grad():
        measure(layer, seen)
        if layer.sparsity.shift is not None:
            layer.sparsity.shift.copy_(0.2 * torch.randn(INPUTS, generator=generator, dtype=torch.float64))
            layer.sparsity.gain.fill_(1.07)
    return layer, text, generator, sizes


def reference(layer, x, text) -> np.ndarray:
    sparsity = layer.sparsity
    eta = None if sparsity.shift is None else sparsity.shift.numpy()
    v = 1.0 if sparsity.gain is None else sparsity.gain.item()
    weight = layer.weight.detach().double().numpy()
    return output(x.numpy(), sparsity.recipe, weight, layer.bias.detach().double().numpy(), text.numpy(), eta, v)
