"""An exporter: `--export float16` writes the checkpoint in half precision too, into a folder of that name."""

import copy

import torch


def export(model, tokenizer, folder):
    """Write the model and its tokenizer into a folder that is there and empty."""
    copy.deepcopy(model).to(torch.float16).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
