"""Every method on the trained reference model, against its formula in float64: own hooks, own arithmetic.

The product runs in float32. Its scores must be those of the formulas to 1e-5, and the units it keeps the same ones.
"""

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_pruner import Options, run
from llm_pruner.data import calibration_prompts

pytestmark = pytest.mark.shared

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, NEURONS = 6, 256, 8, 4, 32, 704
WINDOWS, LENGTH, SEED = 32, 128, 0
KV_GROUP = (2 * 2 + 2) * HEAD_DIM * HIDDEN  # parameters: two query heads in q and o, one head in k and v
NEURON = 3 * HIDDEN
PARAMETERS = LAYERS * (KV_HEADS * KV_GROUP + NEURONS * NEURON)
TOLERANCE = 1e-5

Array = np.ndarray


class Reference:
    """The trained model, computed in float64 throughout, and its calibration tokens."""

    def __init__(self, shared: Path) -> None:
        self.folder = str(shared / "models" / "llama-6m")
        self.text = str(shared / "data" / "wikitext-2" / "valid.txt")
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.windows = torch.stack(calibration_prompts(self.text, WINDOWS, LENGTH, SEED, self.tokenizer))
        self.inputs = [[torch.cat(x) for x in layer] for layer in self.read(self.load(), self.windows.split(8))]

    def load(self):
        """A fresh copy. The stock norms round to float32 even in a float64 model."""
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float64).eval()
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = lambda x, m=module: (
                    m.weight * x / (x.square().mean(-1, keepdim=True) + m.variance_epsilon).sqrt()
                )
        return model

    @staticmethod
    @torch.no_grad()
    def read(model, batches) -> list[list[list[torch.Tensor]]]:
        """What o_proj and down_proj of each layer read: [layer][0 or 1][batch] [tokens of the batch, columns]."""
        found = [[[], []] for _ in range(LAYERS)]
        hooks = []
        for layer, own in zip(model.model.layers, found):
            for module, values in zip((layer.self_attn.o_proj, layer.mlp.down_proj), own):
                hooks.append(
                    module.register_forward_pre_hook(lambda _, x, values=values: values.append(x[0].flatten(0, 1)))
                )
        for batch in batches:
            model.model(batch, use_cache=False)
        for hook in hooks:
            hook.remove()
        return found

    def weights(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """o_proj [256, 256] and down_proj [256, 704]."""
        if not hasattr(self, "_weights"):
            self._weights = [
                (own.self_attn.o_proj.weight.detach(), own.mlp.down_proj.weight.detach())
                for own in self.load().model.layers
            ]
        return self._weights[layer]


@pytest.fixture(scope="module")
def reference(shared) -> Reference:
    return Reference(shared)


def product(reference: Reference, folder: Path, **options) -> tuple[dict[str, Array], dict]:
    """(scores that were saved, the plan) of a run in float32."""
    from safetensors.torch import load_file

    values = {
        "model": reference.folder, "dtype": "float32", "device": "cpu", "calibration_data": reference.text,
        "nsamples": WINDOWS, "calibration_seq_len": LENGTH, "seed": SEED,
        "eval_data": "none", "no_save": "save_model" not in options,
        "save_plan": str(folder / "plan.json"), "scores": str(folder / "scores.safetensors"),
    }  # fmt: skip
    run(Options(**{**values, **options}))
    scores = {name: tensor.double().numpy() for name, tensor in load_file(folder / "scores.safetensors").items()}
    return scores, json.loads((folder / "plan.json").read_text())


def assert_scores(
    found: dict[str, Array],
    expected: dict[str, Array],
    scale: dict[str, Array] | None = None,
    tolerance: float = TOLERANCE,
    median: float = TOLERANCE,
):
    """Relative to the score itself, or to `scale`: the largest error of all units, and the median of each group."""
    errors = {}
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        bound = np.abs(values if scale is None else scale[name])
        assert (bound > 0).all(), name
        errors[name] = np.abs(found[name] - values) / bound
    worst = {name: (float(error.max()), float(np.median(error))) for name, error in errors.items()}
    print("largest relative error, largest median of a group:", *np.array(list(worst.values())).max(0))
    assert all(largest <= tolerance and middle <= median for largest, middle in worst.values()), worst


def by_unit(scores: Array, units: int) -> Array:
    return scores.reshape(units, -1).sum(1)


def highest(scores: Array, count: int) -> list[int]:
    return sorted(np.argsort(-scores)[:count].tolist())


def uniform(expected: dict[str, Array], heads: int, neurons: int) -> dict[str, list[int]]:
    """The kept units when each layer keeps so many heads, evenly per kv group, and neurons."""
    kept = {}
    for layer in range(LAYERS):
        scores = by_unit(expected[f"layers.{layer}.heads"], HEADS).reshape(KV_HEADS, -1)
        kept[f"layers.{layer}.heads"] = [
            2 * group + head for group in range(KV_HEADS) for head in highest(scores[group], heads // KV_HEADS)
        ]
        kept[f"layers.{layer}.kv_heads"] = list(range(KV_HEADS))
        kept[f"layers.{layer}.mlp"] = highest(expected[f"layers.{layer}.mlp"], neurons)
    return kept


def adaptive(expected: dict[str, Array], share: float, remove_heads: int | None = None) -> dict[str, list[int]]:
    """The kept units by AL-AM, or by AL-MM when `remove_heads` query heads go. Units: (layer, kind, number)."""
    units = []
    for layer in range(LAYERS):
        for kind, count, cost in (("heads", KV_HEADS, KV_GROUP), ("mlp", NEURONS, NEURON)):
            columns = expected[f"layers.{layer}.{kind}"]
            values = ((columns - columns.mean()) / columns.std(ddof=1)).reshape(count, -1).mean(1)
            best = int(values.argmax())
            units += [(i != best, -value, cost, layer, kind, i) for i, value in enumerate(values)]
    units.sort()  # the best of each layer and kind first, then by score
    if remove_heads is None:
        cost = np.cumsum([unit[2] for unit in units])
        staying = units[: int(np.abs(cost - (1 - share) * PARAMETERS).argmin()) + 1]
    else:
        groups = remove_heads // 2
        neurons = math.floor((share * PARAMETERS - groups * KV_GROUP) / NEURON)
        heads, mlp = ([unit for unit in units if unit[4] == kind] for kind in ("heads", "mlp"))
        staying = heads[: len(heads) - groups] + mlp[: len(mlp) - neurons]
    kept = {f"layers.{layer}.{kind}": [] for layer in range(LAYERS) for kind in ("kv_heads", "heads", "mlp")}
    for *_, layer, kind, i in sorted(staying, key=lambda unit: unit[-1]):
        if kind == "heads":
            kept[f"layers.{layer}.kv_heads"].append(i)
            kept[f"layers.{layer}.heads"] += [2 * i, 2 * i + 1]
        else:
            kept[f"layers.{layer}.mlp"].append(i)
    return kept


def assert_kept(plan: dict, expected: dict[str, list[int]]):
    """The units, and with them the widths of every layer."""
    for name, units in expected.items():
        assert plan["kept"][name] == units, name
    for layer, widths in enumerate(plan["after"]):
        assert widths["num_attention_heads"] == len(expected[f"layers.{layer}.heads"])
        assert widths["num_key_value_heads"] == len(expected[f"layers.{layer}.kv_heads"])
        assert widths["intermediate_size"] == len(expected[f"layers.{layer}.mlp"])


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
            assert expected.norm() > 0.01, "there is something to make up for"
            error = (found[f"model.layers.{layer}.{module}.bias"] - expected).norm() / expected.norm()
            assert error <= TOLERANCE, (layer, module, float(error))
    assert not any(found[name].any() for name in found if "o_proj" not in name and "down_proj" not in name)


@pytest.fixture
def unverified(monkeypatch):
    """Only the biases in the checkpoint matter here, and a fresh process takes seconds."""
    monkeypatch.setattr("llm_pruner.checkpoint.verify", lambda *_: None)


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
def wanda_sp(reference: Reference, criterion: str) -> tuple[dict[str, Array], list[list[torch.Tensor]]]:
    """(scores, means of what o_proj and down_proj read) when half of the heads and neurons go."""
    model, entered, sign = reference.load(), [], -1 if criterion == "reversed" else 1
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


def turned(scores: dict[str, Array], criterion: str) -> dict[str, Array]:
    return {name: -values if criterion == "reversed" else values for name, values in scores.items()}


@pytest.mark.parametrize("criterion", ["standard", "reversed"])
def test_wanda_sp(reference, tmp_path, criterion):
    expected, _ = wanda_sp(reference, criterion)
    scores, plan = product(
        reference, tmp_path, importance="wanda_sp", criterion=criterion, structure="UL-UM", pruning_ratio=0.5
    )
    assert_scores(scores, expected)
    assert_kept(plan, uniform(turned(expected, criterion), 4, NEURONS // 2))
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


# mag_sp


@pytest.mark.parametrize("criterion", ["standard", "reversed"])
def test_mag_sp(reference, tmp_path, criterion):
    expected = {}
    for layer in range(LAYERS):
        for kind, weight in zip(("heads", "mlp"), reference.weights(layer)):
            expected[f"layers.{layer}.{kind}"] = weight.square().sum(0).sqrt().numpy()
    scores, plan = product(
        reference, tmp_path, importance="mag_sp", criterion=criterion, structure="UL-UM", pruning_ratio=0.5
    )
    assert_scores(scores, expected)
    assert_kept(plan, uniform(turned(expected, criterion), 4, NEURONS // 2))


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
        reference, tmp_path, importance="amp", calibration_data=str(path), calibration_seq_len=512, iteration=2
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
    for name, product in products.items():
        reads_hidden = name.split(".")[-2] not in ("o_proj", "down_proj")
        found["hidden"].append((product.T if product.dim() == 2 and reads_hidden else product).reshape(HIDDEN, -1))
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
    from llm_pruner import importance, trace_groups
    from llm_pruner.gradients import weight_gradient_products
    from llm_pruner.groups import units_of

    model = reference.load()
    groups = units_of(trace_groups(model))
    found = weight_gradient_products(model, reference.windows.split(8))
    for taylor in ("param_first", "vectorize"):
        evidence = importance.Evidence(products=found, taylor=taylor)
        scores = importance.score(groups, importance.get("taylor"), evidence)
        scores = {name: values.double().numpy() for name, values in scores.items()}
        expected, absolute = taylor_scores(products, taylor)
        assert set(scores) == set(expected)
        assert_scores(scores, expected, absolute, tolerance=1e-6)


@pytest.mark.parametrize("taylor", ["param_first", "vectorize"])
def test_taylor(reference, products, tmp_path, taylor):
    """Float32 gradients of a few neurons are off by up to 1.3e-4, with one graph through the stock model as well."""
    expected, absolute = taylor_scores(products, taylor)
    options = {"importance": "taylor", "taylor": taylor}
    scores, plan = product(reference, tmp_path, structure="UL-UM", pruning_ratio=0.5, **options)
    assert set(scores) == set(expected)
    assert_scores(scores, expected, absolute, tolerance=5e-4, median=2e-6)
    assert_kept(plan, uniform(expected, 4, NEURONS // 2))
    _, plan = product(reference, tmp_path, pruning_ratio=0.25, **options)
    assert plan["kept"]["hidden"] == highest(expected["hidden"], 192)


# The calibration text


def test_calibration_windows_are_pieces_of_the_text(reference, tmp_path):
    """Of one tokenisation of the whole file, at offsets in no order; the same for a seed; they may overlap."""
    text = Path(reference.text).read_text(encoding="utf-8")[:60_000]
    path = tmp_path / "text.txt"
    path.write_text(text, encoding="utf-8")
    ids = np.array(reference.tokenizer(text, verbose=False)["input_ids"])
    count = 2 * len(ids) // LENGTH

    def windows(seed: int) -> torch.Tensor:
        return torch.stack(calibration_prompts(str(path), count, LENGTH, seed, reference.tokenizer))

    places = []
    for window in windows(SEED).numpy():
        starts = np.flatnonzero(ids[: len(ids) - LENGTH + 1] == window[0])
        (place,) = [start for start in starts if np.array_equal(ids[start : start + LENGTH], window)]
        places.append(int(place))
    assert len(set(places)) > 0.9 * count
    assert (np.diff(sorted(places)) < LENGTH).any(), "windows that overlap"
    assert 0.4 < np.mean(np.diff(places) > 0) < 0.6, "in no order"
    assert len({place % LENGTH for place in places}) > LENGTH / 4, "on no grid"
    quarters = np.histogram(places, 4, (0, len(ids) - LENGTH))[0]
    assert (quarters > count / 8).all(), "from all over the text"
    assert torch.equal(windows(SEED), windows(SEED))
    assert not torch.equal(windows(SEED), windows(SEED + 1))
