"""Trains the demo model from nothing: `python -m llm_pruner.model.demo.train --out DIR` (20 minutes on two cores).

The result is what `--model demo` loads: a LlamaForCausalLM with grouped queries in bfloat16, its
byte-level BPE tokenizer, a few MB in all. The text is generated (text.py), so nothing is downloaded.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_pruner.model.demo.text import TRAINING_SEED, generate

END = "<|endoftext|>"


def train_tokenizer(text: str, vocab_size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END)


def train(model: Any, batch: Callable[[int], torch.Tensor], steps: int, lr: float) -> None:
    """Train a model in place with AdamW: 100 steps of warming up, then half a cosine.

    It prints a line of JSON every 50 steps.

    Args:
        model: The model.
        batch: Returns a LongTensor [rows, length] for a step.
        steps: Number of steps.
        lr: The highest learning rate.
    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps))),
    )
    started = time.time()
    for step in range(steps):
        ids = batch(step)
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 0 or step == steps - 1:
            seconds = round(time.time() - started)
            print(json.dumps({"step": step, "loss": round(loss.item(), 4), "seconds": seconds}), flush=True)


def main() -> None:
    """Train the demo model and save it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    args = parser.parse_args()

    torch.manual_seed(0)
    text = generate(60_000, TRAINING_SEED)
    tokenizer = train_tokenizer(text, vocab_size=640)
    tokens = torch.tensor([i for ids in tokenizer(text.splitlines(keepends=True))["input_ids"] for i in ids])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, head_dim=24, max_position_embeddings=args.length,
        rms_norm_eps=1e-6, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    print(f"{len(tokens)} tokens, {sum(p.numel() for p in model.parameters())} parameters")

    def batch(_: int) -> torch.Tensor:
        starts = torch.randint(len(tokens) - args.length, (args.batch,))
        return torch.stack([tokens[start : start + args.length] for start in starts])

    train(model, batch, args.steps, args.lr)
    model.to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
