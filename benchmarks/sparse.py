"""Every kind of row of the published tables of sparse activations and weights, on llama-6m, and how 8:16 on all linear
layers fares when a few of its channels are massive.

    python benchmarks/sparse.py                   # half an hour; results/sparse.json, sparse.md, sparse_massive.md

Such channels are made of llama-6m without a change to what it computes: of the channels that each linear layer reads,
the STRONGEST carry most; every other one of these is multiplied by SCALE, the next divided, and what reads it the
other way round.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from measure import RESULTS, keep

from llm_pruner import data, loading
from llm_pruner.sparsity.targets import linear_layers

SHARED = Path(os.environ.get("LLM_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))
CONFIGS = Path(__file__).parents[1] / "configs" / "sparse"
STRIDE = 5  # every fifth window of the test text
STRONGEST, SCALE = 8, 1024.0  # a power of two: exact in bfloat16


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
            if names == ("self_attn.o_proj",):  # the query heads of a group read the same value head
                strength = strength.view(-1, groups, config.head_dim).sum(1).flatten()
            factors = torch.tensor([SCALE, 1 / SCALE] * (STRONGEST // 2), dtype=model.dtype)
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
    tokenizer = loading.load_tokenizer(str(source))
    text = str(SHARED / "data" / "wikitext-2" / "valid.txt")
    make_massive(model, torch.stack(data.calibration_prompts(text, 16, 128, 0, tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    source = SHARED / "models" / "llama-6m"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(os.environ.get("SPARSE_FOLDER", name))  # to go on with an interrupted run
        rows = sweep(source, "sweep.yaml", folder / "rows")
        if not (folder / "llama-6m-massive").is_dir():
            massive(source, folder / "llama-6m-massive")
        with_massive = sweep(folder / "llama-6m-massive", "sweep_massive.yaml", folder / "massive")
        RESULTS.mkdir(exist_ok=True)
        shutil.copy(folder / "rows" / "sweep.md", RESULTS / "sparse.md")
        shutil.copy(folder / "massive" / "sweep.md", RESULTS / "sparse_massive.md")
        keep("sparse", {
            "model": "llama-6m", "evaluation": f"every {STRIDE}th window of 256 tokens of WikiText-2's test text",
            "calibration": "128 windows of 128 tokens of the validation text", "runs": rows["runs"],
            "massive": {"strongest": STRONGEST, "scale": SCALE, "runs": with_massive["runs"]},
        })  # fmt: skip


if __name__ == "__main__":
    main()
