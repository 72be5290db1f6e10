"""mag_sp, AMP and Taylor on the trained reference model, against float64."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm_pruner.importance import criterion_of, score
from tests.support.float64 import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    LENGTH,
    NEURONS,
    WINDOWS,
    Array,
    assert_kept,
    assert_scores,
    highest,
    product,
    turned,
    uniform,
)

pytestmark = pytest.mark.shared


# mag_sp


@pytest.mark.parametrize("order", ["standard", "reversed"])
def test_mag_sp(reference, tmp_path, order):
    expected = {}
    for layer in range(LAYERS):
        for kind, weight in zip(("heads", "mlp"), reference.weights(layer)):
            expected[f"layers.{layer}.{kind}"] = weight.square().sum(0).sqrt().numpy()
    scores, plan = product(reference, tmp_path, importance="mag_sp", order=order, structure="UL-UM", pruning_ratio=0.5)
    assert_scores(scores, expected)
    assert_kept(plan, uniform(turned(expected, order), 4, NEURONS // 2))


# AMP


@torch.no_grad()
def test_amp(reference, tmp_path):
    """Prompts of very different lengths: a mean over tokens would be another one."""
    nouns = ("river", "engine", "treaty", "orchestra", "harbour")
    records = [
        {
            "instruction": f"Describe the {nouns[i % 5]}" + " of the old town" * (i % 4),
            "input": "It was built in the year 1850 . " * ((i * i) % 7),
            "output": "Nobody reads this",
        }
        for i in range(24)
    ]
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    texts = [f"Instruction: {r['instruction']}\nInput: {r['input']}\nResponse:" for r in records]
    prompts = [torch.tensor([reference.tokenizer(text)["input_ids"]]) for text in texts]
    lengths = {prompt.shape[1] for prompt in prompts}
    assert len(lengths) > 8
    assert max(lengths) > 3 * min(lengths)
    expected = {}
    for layer, (attention, mlp) in enumerate(reference.read(reference.load(), prompts)):
        weight, _ = reference.weights(layer)
        per_head = [
            torch.stack([(x[:, columns] @ weight[:, columns].T).abs().sum(1).mean() for x in attention]).mean()
            for columns in (slice(HEAD_DIM * h, HEAD_DIM * (h + 1)) for h in range(HEADS))
        ]
        expected[f"layers.{layer}.heads"] = torch.stack(per_head).numpy()
        expected[f"layers.{layer}.kv_heads"] = expected[f"layers.{layer}.heads"]
        expected[f"layers.{layer}.mlp"] = torch.stack([x.abs().mean(0) for x in mlp]).mean(0).numpy()
        over_tokens = torch.cat(mlp).abs().mean(0).numpy()
        assert np.abs(over_tokens / expected[f"layers.{layer}.mlp"] - 1).max() > 0.01
    scores, plan = product(
        reference,
        tmp_path,
        importance="amp",
        calibration_data=str(path),
        nsamples=len(records),
        calibration_seq_len=512,
        iteration=2,
    )
    assert_scores(scores, expected)
    # ρ' = 2·(737,280 + 2·256)/4,423,680 = 0.333565; 0.66713 of two heads a group: one, so 4;
    # neurons: 2.66852 - 4 + 234.82963 = 233.49815
    assert_kept(plan, uniform(expected, 4, NEURONS - 233))


# LLM-Pruner's Taylor


@pytest.fixture(scope="module")
def products(reference) -> dict[str, torch.Tensor]:
    """{parameter: w·∂L/∂w} by one graph through the whole model."""
    model = reference.load()
    for batch in reference.windows.split(8):
        logits = model(batch, use_cache=False).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum")
        (loss / (WINDOWS * (LENGTH - 1))).backward()
    return {name: parameter.detach() * parameter.grad for name, parameter in model.named_parameters()}


def slices(products: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """{group: w·g of all that goes with its units, [units, what each has]}."""
    found = {"hidden": []}
    for name, values in products.items():
        reads_hidden = name.split(".")[-2] not in ("o_proj", "down_proj")
        found["hidden"].append((values.T if values.dim() == 2 and reads_hidden else values).reshape(HIDDEN, -1))
    for layer in range(LAYERS):
        own = {name.split(".")[-2]: p for name, p in products.items() if name.startswith(f"model.layers.{layer}.")}
        neurons = [own["gate_proj"], own["up_proj"], own["down_proj"].T]
        kv_groups = [own["q_proj"], own["k_proj"], own["v_proj"], own["o_proj"].T]
        found[f"layers.{layer}.mlp"] = [p.reshape(NEURONS, -1) for p in neurons]
        found[f"layers.{layer}.kv_heads"] = [p.reshape(KV_HEADS, -1) for p in kv_groups]
        found[f"layers.{layer}.heads"] = [p.reshape(HEADS, -1) for p in (own["q_proj"], own["o_proj"].T)]
    return found


def taylor_scores(products: dict[str, torch.Tensor], taylor: str) -> tuple[dict[str, Array], dict[str, Array]]:
    """(scores, Σ|w·g|). Errors are relative to that: in some units of `vectorize` the terms all but cancel."""
    units = {name: torch.cat(parts, 1) for name, parts in slices(products).items()}
    absolute = {name: values.abs().sum(1).numpy() for name, values in units.items()}
    signed = {name: values.sum(1).abs().numpy() for name, values in units.items()}
    return absolute if taylor == "param_first" else signed, absolute


def test_taylor_of_a_float64_model(reference, products):
    """The formula, without the noise of float32 gradients."""
    from llm_pruner import trace_groups
    from llm_pruner.calibration.gradients import weight_gradient_products
    from llm_pruner.calibration.statistics import Statistics
    from llm_pruner.model.groups import units_of

    model = reference.load()
    groups = units_of(trace_groups(model))
    found = weight_gradient_products(model, reference.windows.split(8))
    for taylor in ("param_first", "vectorize"):
        scores = score(groups, criterion_of("taylor", {"taylor": taylor}), Statistics(products=found))
        scores = {name: values.double().numpy() for name, values in scores.items()}
        expected, absolute = taylor_scores(products, taylor)
        assert set(scores) == set(expected)
        assert_scores(scores, expected, absolute, tolerance=1e-6)


@pytest.mark.parametrize("taylor", ["param_first", "vectorize"])
def test_taylor(reference, products, tmp_path, taylor):
    """Float32 gradients of a few neurons are off by up to 1e-4, with one graph through the stock model as well."""
    expected, absolute = taylor_scores(products, taylor)
    options = {"importance": "taylor", "taylor": taylor}
    scores, plan = product(reference, tmp_path, structure="UL-UM", pruning_ratio=0.5, **options)
    assert set(scores) == set(expected)
    assert_scores(scores, expected, absolute, tolerance=5e-4, median=2e-6)
    assert_kept(plan, uniform(expected, 4, NEURONS // 2))
    _, plan = product(reference, tmp_path, pruning_ratio=0.25, **options)
    assert plan["kept"]["hidden"] == highest(expected["hidden"], 192)
