"""Sparse activations, saved and loaded in other processes: verified as they were, and by transformers alone."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from llm_pruner.cli.sparsify import sparsify_checkpoint
from llm_pruner.config.recipe import Recipe
from llm_pruner.config.sparsify import resolve
from llm_pruner.sparsity.calibration import sparsify_activations
from llm_pruner.sparsity.learn import Learning
from llm_pruner.sparsity.saved import mark
from tests.support import tiny

FULL = Recipe(ratio=0.5, select="threshold", transform="learnable", scaling=True, criterion="wanda")


@pytest.mark.slow
def test_transformers_alone_warns_and_loads_the_dense_model(tmp_path, python):
    model = tiny.model("llama")
    dense = tiny.logits(model)
    sparsify_activations(model, FULL, [tiny.tokens(2, 32, seed) for seed in range(4)], Learning(epochs=1))
    mark(model, FULL)
    model.save_pretrained(tmp_path / "sparse")
    torch.save(tiny.tokens(), tmp_path / "tokens.pt")
    (tmp_path / "load.py").write_text(
        "import sys, torch\n"
        "sys.modules['llm_pruner'] = None\n"
        "from transformers import AutoModelForCausalLM\n"
        "model = AutoModelForCausalLM.from_pretrained('sparse').eval()\n"
        "torch.save(model(torch.load('tokens.pt')).logits, 'logits.pt')\n"
    )
    done = python("load.py", fresh=True)
    assert done.returncode == 0, done.stderr
    assert "sparse_activations" in done.stderr + done.stdout
    assert torch.equal(torch.load(tmp_path / "logits.pt"), dense)


@pytest.mark.slow
def test_bfloat16_of_real_width_is_saved_and_verified(tmp_path, quick_reload):
    """Where a weight lies in memory decides how bfloat16 rounds, and that which input survives."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=3, num_attention_heads=8, vocab_size=256,
        max_position_embeddings=64,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "dense")
    save = {"eval_data": "none", "save_model": str(tmp_path / "sparse")}
    sparsify_checkpoint(resolve({"model": (str(tmp_path / "dense"),), "n": 8, "m": 16, **save}))
    assert (tmp_path / "sparse" / "model.safetensors").is_file()
