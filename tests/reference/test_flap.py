"""FLAP, Wanda-sp and the biases on the trained reference model, against float64."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.float64 import (
    HEAD_DIM,
    HEADS,
    KV_GROUP,
    KV_HEADS,
    LAYERS,
    NEURONS,
    PARAMETERS,
    TOLERANCE,
    Array,
    Reference,
    adaptive,
    assert_kept,
    assert_scores,
    by_unit,
    highest,
    product,
    turned,
    uniform,
)

pytestmark = pytest.mark.shared


# FLAP


def flap_scores(reference: Reference, metrics: str) -> dict[str, Array]:
    expected = {}
    for layer, inputs in enumerate(reference.inputs):
        for kind, x, weight in zip(("heads", "mlp"), inputs, reference.weights(layer)):
            variance = (x - x.mean(0)).square().mean(0)
            columns = {
                "IFV": variance,
                "WIFV": variance * weight.square().sum(0),
                "WIFN": (weight.abs() * x.square().sum(0).sqrt()).mean(0),
            }[metrics].numpy()
            expected[f"layers.{layer}.{kind}"] = columns**2 if kind == "heads" else columns
    return expected


@pytest.mark.parametrize("metrics", ["IFV", "WIFV", "WIFN"])
def test_flap(reference, tmp_path, metrics):
    """One pass of scores for all structures: uniform ones drop query heads evenly, adaptive ones whole kv groups."""
    expected = flap_scores(reference, metrics)

    def plan(**options):
        return product(reference, tmp_path, importance="flap", metrics=metrics, **options)

    scores, first = plan(structure="AL-AM", pruning_ratio=0.3)
    assert_scores(scores, expected)
    for layer in range(LAYERS):  # a kv group is made of the same columns
        assert np.array_equal(scores[f"layers.{layer}.kv_heads"], scores[f"layers.{layer}.heads"])
    assert_kept(first, adaptive(expected, 0.3))
    assert len({layer["intermediate_size"] for layer in first["after"]}) > 1, "layers differ"
    removed = 1 - first["decoder_after"] / first["decoder_before"]
    assert abs(removed - 0.3) * PARAMETERS <= KV_GROUP / 2
    assert_kept(plan(structure="AL-AM", pruning_ratio=0.5)[1], adaptive(expected, 0.5))
    assert_kept(plan(structure="AL-MM", pruning_ratio=0.25, remove_heads=13)[1], adaptive(expected, 0.25, 13))
    # ⌊0.55·2⌋ = 1 head of each group, ⌊0.55·704⌋ = ⌊387.2⌋ neurons
    assert_kept(plan(structure="UL-UM", pruning_ratio=0.55)[1], uniform(expected, 4, NEURONS - 387))
    # 30 // 6 = 5 heads, so 4: 2·4·32·256 = 65,536 of 0.3·737,280 = 221,184; 155,648/768 = 202.67 neurons
    assert_kept(plan(structure="UL-MM", pruning_ratio=0.3, remove_heads=30)[1], uniform(expected, 4, NEURONS - 202))


def biases_in(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: tensor.double() for name, tensor in load_file(folder / "model.safetensors").items() if "bias" in name}


def assert_biases(folder: Path, plan: dict, means, weights):
    """W_P·x̄_P. means, weights: by layer, of o_proj and down_proj."""
    found = biases_in(folder)
    for layer in range(LAYERS):
        kinds = (("heads", "self_attn.o_proj", HEADS), ("mlp", "mlp.down_proj", NEURONS))
        for (kind, module, units), mean, weight in zip(kinds, means[layer], weights(layer)):
            lost = np.ones(units, bool)
            lost[plan["kept"][f"layers.{layer}.{kind}"]] = False
            columns = torch.from_numpy(lost.repeat(len(mean) // units))
            expected = weight[:, columns] @ mean[columns]
            assert expected.norm() > 0.01, "there is something to compensate for"
            error = (found[f"model.layers.{layer}.{module}.bias"] - expected).norm() / expected.norm()
            assert error <= TOLERANCE, (layer, module, float(error))
    assert not any(found[name].any() for name in found if "o_proj" not in name and "down_proj" not in name)


@pytest.fixture
def unverified(monkeypatch):
    """Only the biases in the checkpoint matter here, and a fresh process takes seconds."""
    monkeypatch.setattr("llm_pruner.output.checkpoint.verify", lambda *_: None)


@pytest.mark.usefixtures("unverified")
def test_bias_compensation(reference, tmp_path):
    _, plan = product(
        reference, tmp_path, importance="flap", structure="UL-UM", pruning_ratio=0.5, compensate="bias",
        save_model=str(tmp_path / "out"),
    )  # fmt: skip
    means = [[x.mean(0) for x in inputs] for inputs in reference.inputs]
    assert_biases(tmp_path / "out", plan, means, reference.weights)


# Wanda-sp: every layer on the output of the pruned ones before it


@functools.cache
@torch.no_grad()
def wanda_sp(reference: Reference, order: str) -> tuple[dict[str, Array], list[list[torch.Tensor]]]:
    """(scores, means of what o_proj and down_proj read) when half of the heads and neurons go."""
    model, entered, sign = reference.load(), [], -1 if order == "reversed" else 1
    model.config.num_hidden_layers = 1  # as many as run here, and one is enough to see what enters it
    hook = model.model.layers[0].register_forward_pre_hook(
        lambda _, arguments, options: entered.append((arguments[0], options)), with_kwargs=True
    )
    reference.read(model, reference.windows.split(8))
    hook.remove()
    stream, options = [hidden for hidden, _ in entered], [options for _, options in entered]
    expected, means = {}, []
    for layer, own in enumerate(model.model.layers):
        modules, inputs = (own.self_attn.o_proj, own.mlp.down_proj), ([], [])
        hooks = [
            module.register_forward_pre_hook(lambda _, x, values=values: values.append(x[0].flatten(0, 1)))
            for module, values in zip(modules, inputs)
        ]
        for hidden, rest in zip(stream, options):
            own(hidden, **rest)
        for hook in hooks:
            hook.remove()
        inputs = [torch.cat(x) for x in inputs]
        for kind, module, x in zip(("heads", "mlp"), modules, inputs):
            expected[f"layers.{layer}.{kind}"] = (module.weight.abs() * x.square().sum(0).sqrt()).mean(0).numpy()
        means.append([x.mean(0) for x in inputs])
        pairs = sign * by_unit(expected[f"layers.{layer}.heads"], HEADS).reshape(KV_HEADS, 2)
        for group, head in enumerate(pairs.argmin(1)):
            start = (2 * group + int(head)) * HEAD_DIM
            own.self_attn.o_proj.weight[:, start : start + HEAD_DIM] = 0
        own.mlp.down_proj.weight[:, highest(-sign * expected[f"layers.{layer}.mlp"], NEURONS // 2)] = 0
        stream = [own(hidden, **rest) for hidden, rest in zip(stream, options)]
    return expected, means


@pytest.mark.parametrize("order", ["standard", "reversed"])
def test_wanda_sp(reference, tmp_path, order):
    expected, _ = wanda_sp(reference, order)
    scores, plan = product(
        reference, tmp_path, importance="wanda_sp", order=order, structure="UL-UM", pruning_ratio=0.5
    )
    assert_scores(scores, expected)
    assert_kept(plan, uniform(turned(expected, order), 4, NEURONS // 2))
    dense = (reference.weights(3)[1].abs() * reference.inputs[3][1].square().sum(0).sqrt()).mean(0).numpy()
    assert np.abs(scores["layers.3.mlp"] / dense - 1).max() > 0.01, "what was pruned before plays a part"


@pytest.mark.usefixtures("unverified")
def test_bias_of_units_that_were_silenced_on_the_way(reference, tmp_path):
    """W_P is the model's own, whatever the calibration did to it."""
    _, means = wanda_sp(reference, "standard")
    _, plan = product(
        reference, tmp_path, importance="wanda_sp", structure="UL-UM", pruning_ratio=0.5, compensate="bias",
        save_model=str(tmp_path / "out"),
    )  # fmt: skip
    assert_biases(tmp_path / "out", plan, means, reference.weights)
