"""Every kind of row of the published tables of sparse activations and weights, on llama-6m, and how 8:16 on all linear
layers fares when a few of its channels are massive.

    python benchmarks/sparse.py                   # half an hour; results/sparse.json, sparse.md

SPARSE_FOLDER names a folder that keeps the runs, so that an interrupted one goes on.
Such channels are made of llama-6m without a change to what it computes: of the channels that each linear layer reads,
the STRONGEST carry most; every other one of these is divided by SCALE, the next multiplied, and what reads it the
other way round.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import RESULTS, keep

from llm_pruner.calibration.prompts import calibration_prompts
from llm_pruner.model import loading
from llm_pruner.model.tokenizers import load_tokenizer
from llm_pruner.sparsity.sweep import markdown
from llm_pruner.sparsity.targets import linear_layers

SHARED = Path(os.environ.get("LLM_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))
CONFIGS = Path(__file__).parents[1] / "configs" / "sparse"
# of rows by n:m: how they are called, and what is appended to the name of their YAML
KINDS = {
    "activations": "act{}", "… VAR": "act{}_var", "… VAR, causal": "act{}_var_causal", "… PTS": "act{}_pts",
    "… scaling": "act{}_scaling", "… scaling and PTS": "act{}_scaling_pts", "… learnable": "act{}_learnable",
    "… L criterion": "act{}_l", "… L criterion, causal": "act{}_l_causal", "… weight-aware": "act{}_wanda",
    "… permutation": "act{}_permutation", "… permutation, scaling and learnable": "act{}_combined",
    "… q, k, v, o only": "act{}_qkvo",
    "weights": "weight{}", "… Wanda": "weight{}_wanda",
}  # fmt: skip
# of rows by ratio
SHARES = {
    "activations, of every token": "act_{}", "… below a threshold": "act_threshold_{}", "weights": "weight_{}",
    "… Wanda": "weight_{}_wanda",
}  # fmt: skip
MASSIVE = ("", "_var", "_pts", "_l", "_scaling", "_wanda", "_learnable", "_combined")
# every fifth window of the test text
STRIDE = 5
# a power of two: exact in bfloat16
STRONGEST, SCALE = 8, 1024.0


def sweep(model: Path, config: str, folder: Path) -> dict:
    """What the command measured, every run's report included."""
    wikitext = SHARED / "data" / "wikitext-2"
    subprocess.run(
        [
            sys.executable, "-m", "llm_pruner", "sparsify", "--config", CONFIGS / config, "--model", model,
            "--calibration_data", wikitext / "valid.txt", "--eval_data", wikitext / "test.txt", "--max_seq_len", "256",
            "--eval_stride", str(STRIDE), "--folder", folder,
        ],
        check=True,
    )  # fmt: skip
    found = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    for run in found["runs"]:
        report = json.loads((folder / run["report"]).read_text(encoding="utf-8"))
        run |= {"sparsity": report["sparsity"], "learned": report["learned"], "evaluation": report["evaluation"]}
        run["evaluation"].pop("data")
    return found


@torch.no_grad()
def make_massive(model, prompts: torch.Tensor) -> None:
    """Scales channels of a Llama in place. prompts: LongTensor [n, tokens], which say what each channel carries."""
    carried: dict[str, torch.Tensor] = {}

    def adding(name: str):
        def hook(module, arguments):
            squares = arguments[0].float().square().flatten(0, -2).sum(0) * module.weight.float().square().sum(0)
            carried[name] = carried.get(name, 0.0) + squares

        return hook

    hooks = [module.register_forward_pre_hook(adding(name)) for name, module in linear_layers(model).items()]
    model(prompts)
    for hook in hooks:
        hook.remove()
    config = model.config
    groups = config.num_attention_heads // config.num_key_value_heads
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp

        def strongest(names: tuple[str, ...], start=f"model.layers.{index}.") -> tuple[torch.Tensor, torch.Tensor]:
            """(channels, their factors)"""
            strength = sum(carried[start + name] for name in names)
            # the query heads of a group read the same value head
            if names == ("self_attn.o_proj",):
                strength = strength.view(-1, groups, config.head_dim).sum(1).flatten()
            factors = torch.tensor([1 / SCALE, SCALE] * (STRONGEST // 2), dtype=model.dtype)
            return strength.topk(STRONGEST).indices, factors

        channels, factors = strongest(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
        layer.input_layernorm.weight[channels] *= factors
        for reader in (attention.q_proj, attention.k_proj, attention.v_proj):
            reader.weight[:, channels] /= factors
        channels, factors = strongest(("mlp.gate_proj", "mlp.up_proj"))
        layer.post_attention_layernorm.weight[channels] *= factors
        for reader in (mlp.gate_proj, mlp.up_proj):
            reader.weight[:, channels] /= factors
        channels, factors = strongest(("mlp.down_proj",))
        mlp.up_proj.weight[channels] *= factors[:, None]
        mlp.down_proj.weight[:, channels] /= factors
        channels, factors = strongest(("self_attn.o_proj",))
        attention.v_proj.weight[channels] *= factors[:, None]
        read = attention.o_proj.weight.view(-1, config.num_key_value_heads, groups, config.head_dim)
        heads, places = channels // config.head_dim, channels % config.head_dim
        for head, place, factor in zip(heads.tolist(), places.tolist(), factors.tolist(), strict=True):
            read[:, head, :, place] /= factor


def massive(source: Path, folder: Path) -> None:
    """A copy of the model in `source` with massive channels, as a checkpoint."""
    model = loading.load_model(str(source), loading.load_config(str(source)), "auto", "cpu")
    tokenizer = load_tokenizer(str(source))
    text = str(SHARED / "data" / "wikitext-2" / "valid.txt")
    make_massive(model, torch.stack(calibration_prompts(text, 16, 128, 0, tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tables(rows: list[dict], with_massive: list[dict]) -> list[str]:
    """By n:m, by ratio, and with massive channels: Markdown."""
    found = {run["pattern"]: run["perplexity"]["after"] for run in rows}
    massive_ones = {run["pattern"]: run["perplexity"]["after"] for run in with_massive}
    dense = rows[0]["perplexity"]["before"]
    by_groups = [["", "2:4", "8:16"], ["dense", shown(dense), shown(dense)]]
    for kind, name in KINDS.items():
        by_groups.append([kind, *(shown(found.get(name.format(pattern))) for pattern in ("_2_4", "_8_16"))])
    ratios = ("0.2", "0.25", "0.5", "0.7", "0.75", "0.9")
    by_ratio = [["removed", *ratios]]
    for kind, name in SHARES.items():
        by_ratio.append([kind, *(shown(found.get(name.format(ratio))) for ratio in ratios)])
    names = {name.format("_8_16"): kind for kind, name in KINDS.items()}
    fares = [["8:16 on all linear layers", "llama-6m", "with massive channels"]]
    fares.append(["dense", shown(dense), shown(with_massive[0]["perplexity"]["before"])])
    for suffix in MASSIVE:
        own = f"act_8_16{suffix}"
        fares.append([names[own], shown(found[own]), shown(massive_ones[own])])
    return [markdown(table) for table in (by_groups, by_ratio, fares)]


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"


def main() -> None:
    source = SHARED / "models" / "llama-6m"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.environ.get("SPARSE_FOLDER", name))
        rows = sweep(source, "sweep.yaml", folder / "rows")
        if not (folder / "llama-6m-massive").is_dir():
            massive(source, folder / "llama-6m-massive")
        with_massive = sweep(folder / "llama-6m-massive", "sweep_massive.yaml", folder / "massive")
        RESULTS.mkdir(exist_ok=True)
        written = "\n".join(tables(rows["runs"], with_massive["runs"]))
        (RESULTS / "sparse.md").write_text(written, encoding="utf-8")
        keep("sparse", {
            "model": "llama-6m", "evaluation": f"every {STRIDE}th window of 256 tokens of WikiText-2's test text",
            "calibration": "128 windows of 128 tokens of the validation text", "runs": rows["runs"],
            "massive": {"strongest": STRONGEST, "scale": SCALE, "runs": with_massive["runs"]},
        })  # fmt: skip


if __name__ == "__main__":
    main()
