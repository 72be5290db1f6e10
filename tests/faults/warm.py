"""Imported by the server before it forks: what every process under test would do first and cannot fail at.

transformers compiles a thousand patterns when it loads its first model.
"""

import tempfile

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.utils import logging

logging.disable_progress_bar()
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    small = {
        "vocab_size": 8,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    AutoModelForCausalLM.from_config(LlamaConfig(**small)).save_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})(torch.zeros(1, 2, dtype=torch.long))
logging.enable_progress_bar()
