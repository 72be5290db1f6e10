"""The methods' formulas in float64 on the trained reference model, with own hooks and own arithmetic."""

import functools
import json
import math
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_pruner import prune_checkpoint
from llm_pruner.calibration.prompts import calibration_prompts
from llm_pruner.config.prune import PruneOptions

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, NEURONS = 6, 256, 8, 4, 32, 704
WINDOWS, LENGTH, SEED = 16, 128, 0
KV_GROUP = (2 * 2 + 2) * HEAD_DIM * HIDDEN  # parameters: two query heads in q and o, one head in k and v
NEURON = 3 * HIDDEN
PARAMETERS = LAYERS * (KV_HEADS * KV_GROUP + NEURONS * NEURON)
TOLERANCE = 1e-5  # of scores that the product computes in float32

Array = np.ndarray


class Reference:
    """The trained model, computed in float64 throughout, and its calibration tokens."""

    def __init__(self, shared: Path) -> None:
        self.folder = str(shared / "models" / "llama-6m")
        self.text = str(shared / "data" / "wikitext-2" / "valid.txt")
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.windows = torch.stack(calibration_prompts(self.text, WINDOWS, LENGTH, SEED, self.tokenizer))

    @functools.cached_property
    def inputs(self) -> list[list[torch.Tensor]]:
        """What o_proj and down_proj of each layer read: [layer][0 or 1] [tokens, columns]."""
        return [[torch.cat(x) for x in layer] for layer in self.read(self.load(), self.windows.split(8))]

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

    @functools.cached_property
    def projections(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [
            (own.self_attn.o_proj.weight.detach(), own.mlp.down_proj.weight.detach())
            for own in self.load().model.layers
        ]

    def weights(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """o_proj [256, 256] and down_proj [256, 704]."""
        return self.projections[layer]


def product(reference: Reference, folder: Path, **options) -> tuple[dict[str, Array], dict]:
    """(scores that were saved, the plan) of a run in float32."""
    from safetensors.torch import load_file

    values = {
        "model": reference.folder, "dtype": "float32", "device": "cpu", "calibration_data": reference.text,
        "nsamples": WINDOWS, "calibration_seq_len": LENGTH, "seed": SEED,
        "eval_data": "none", "no_save": "save_model" not in options,
        "save_plan": str(folder / "plan.json"), "scores": str(folder / "scores.safetensors"),
    }  # fmt: skip
    prune_checkpoint(PruneOptions(**{**values, **options}))
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


def turned(scores: dict[str, Array], order: str) -> dict[str, Array]:
    return {name: -values if order == "reversed" else values for name, values in scores.items()}
