"""Trains the small models that methods are compared on besides llama-6m: other families, other widths.

    python benchmarks/train_models.py    # needs $LLM_PRUNER_SHARED, by default ../shared

A quarter of an hour each on two cores. qwen3-2m: tied embeddings and q/k norms. phi3-3m: fused qkv and gate_up
projections, untied. Both in bfloat16, with llama-6m's tokenizer, on windows of 256 tokens of english-24mb.txt.xz.
The weights go to benchmarks/models/, which git ignores; a model that is there already is left alone.
"""

import argparse
import lzma
import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llm_pruner.model.demo.train import train

SHARED = Path(os.environ.get("LLM_PRUNER_SHARED", Path(__file__).parents[2] / "shared"))
MODELS = Path(__file__).parent / "models"
LENGTH = 256
COMMON = {
    "hidden_size": 160, "num_hidden_layers": 5, "intermediate_size": 448, "max_position_embeddings": 512,
    "num_attention_heads": 8, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
    "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None,
}  # fmt: skip
# name → model_type, values, steps of training
CONFIGS = {
    "qwen3-2m": ("qwen3", {**COMMON, "head_dim": 20, "tie_word_embeddings": True}, 1000),
    "phi3-3m": ("phi3", {**COMMON, "tie_word_embeddings": False}, 500),
}


def windows(tokenizer) -> torch.Tensor:
    """The training text as LongTensor [windows, LENGTH]."""
    with lzma.open(SHARED / "data" / "english-24mb.txt.xz", "rt", encoding="utf-8") as file:
        text = file.read()
    pieces = [text[start : start + 1_000_000] for start in range(0, len(text), 1_000_000)]
    tokens = torch.tensor([token for piece in pieces for token in tokenizer(piece)["input_ids"]])
    return tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)


def trained(name: str, data: torch.Tensor, vocab_size: int, batch: int, lr: float):
    torch.manual_seed(0)
    model_type, values, steps = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, vocab_size=vocab_size, **values))
    order = torch.cat([torch.randperm(len(data)) for _ in range(steps * batch // len(data) + 1)])
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {steps * batch * LENGTH:,} tokens")
    train(model, lambda step: data[order[step * batch : (step + 1) * batch]], steps, lr)
    return model.to(torch.bfloat16).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "llama-6m")
    wanted = [name for name in CONFIGS if not (MODELS / name / "config.json").is_file()]
    data = windows(tokenizer) if wanted else None
    for name in wanted:
        model = trained(name, data, len(tokenizer), arguments.batch, arguments.lr)
        model.save_pretrained(MODELS / name)
        tokenizer.save_pretrained(MODELS / name)


if __name__ == "__main__":
    main()
