"""Recovery by several processes, as `accelerate launch` and torchrun start them: the same model as by one."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.support import tiny
from tests.support.commands import DEMO

STEPS = (
    "--steps",
    "3",
    "--learning_rate",
    "0.01",
    "--max_seq_len",
    "16",
    "--device",
    "cpu",
    "--warmup",
    "0",
    "--mixed_precision",
    "no",
)
FSDP = """
distributed_type: FSDP
use_cpu: true
num_processes: 2
num_machines: 1
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_state_dict_type: FULL_STATE_DICT
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    for seed, name in enumerate(("teacher", "student")):
        tiny.model("llama", seed, vocab_size=len(tokenizer)).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "text.txt").write_text("The wind was cold and the gulls were loud. Rain fell on the roofs. " * 30)
    (folder / "fsdp.yaml").write_text(FSDP)
    return folder


def recover(folder, start, name, *more, run=subprocess.run):
    """The weights that the command saves, started by `start`."""
    command = [
        *start, "-m", "llm_pruner", "recover", "--model", "student", "--teacher", "teacher", "--data", "text.txt",
        "--eval_data", "text.txt", "--save_model", name, *STEPS, *more,
    ]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("perplexity after:") == 1, "one voice"
    return load_file(folder / name / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["full", "lora", "cached"])
def test_two_processes_and_shards_give_what_one_gives(folder, forks, weights):
    """Against a cached teacher, too, whose cache the two processes fill themselves."""
    more = ("--train_weights", "lora" if weights == "lora" else "full", "--lora_dropout", "0")
    if weights == "cached":
        more = (*more, "--teacher_cache", "cache", "--teacher_top_k", "16")
    one = recover(folder, [sys.executable], f"one-{weights}", "--train_batch_size", "4", *more, run=forks.run)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    if weights == "lora":
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "fsdp.yaml"]
    if weights == "cached":
        (folder / "cache").rename(folder / "cache-of-one")
    two = recover(folder, launcher, f"two-{weights}", "--train_batch_size", "2", *more)
    if weights == "cached":
        (shard,) = (folder / "cache-of-one").glob("shard-*")
        assert (folder / "cache" / shard.name).stat().st_size == shard.stat().st_size
    start = load_file(folder / "student" / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    moved = (one[name] - start[name]).abs().max()
    assert moved > 1e-3
    assert one.keys() == two.keys()
    assert all(torch.isfinite(two[name]).all() and two[name].shape == one[name].shape for name in one)
    assert (one[name] - two[name]).abs().max() < 0.05 * moved
