"""Models whose layers differ in width, saved and loaded in fresh processes: by their own code and by the package."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from llm_pruner.model import per_layer
from tests import REPOSITORY
from tests.support import tiny, widths_per_layer
from tests.support.reload_per_layer import TOKENS, outputs

pytestmark = pytest.mark.slow
# cases whose layers lack an attention or an MLP, too
SKIPPING, WITHOUT = ("llama", "gemma3_text", "gpt2", "gpt_neox"), "_without"
NAMES = (*tiny.CASES, *(f"{case}{WITHOUT}" for case in SKIPPING))
SCRIPT = REPOSITORY / "tests" / "support" / "reload_per_layer.py"


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    without = {f"{case}{WITHOUT}": widths_per_layer.model(case, widths_per_layer.skipping) for case in SKIPPING}
    return {case: widths_per_layer.model(case) for case in tiny.CASES} | without


@pytest.fixture(scope="module")
def reloaded(models, tmp_path_factory):
    """{mode: {case: results}} of every model saved here and loaded in a fresh process in every mode, and "here"."""
    folder = tmp_path_factory.mktemp("per_layer")
    results = {"here": {case: outputs(copy.deepcopy(model)) for case, model in models.items()}}
    for case, model in models.items():
        model.save_pretrained(folder / "saved" / case)
        AutoModelForCausalLM.from_pretrained(folder / "saved" / case).save_pretrained(folder / "from_registered" / case)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    for mode in ("remote", "registered", "late"):
        done = subprocess.run(
            [sys.executable, "-I", SCRIPT, mode, folder],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results[mode] = torch.load(folder / f"{mode}.pt")
    results["folder"] = folder
    return results


@torch.no_grad()
def in_bfloat16(model) -> torch.Tensor:
    model = copy.deepcopy(model)
    for parameter in model.parameters():  # not .to, which would round the rotary frequencies too
        parameter.data = parameter.data.bfloat16()
    return model(TOKENS).logits


@pytest.mark.parametrize("mode", ["remote", "registered"])
@pytest.mark.parametrize("case", NAMES)
def test_reload_in_a_fresh_process_gives_the_same(models, reloaded, case, mode):
    here, there = reloaded["here"][case], reloaded[mode][case]
    assert there["problems"] == {}
    assert there["class"].startswith({"remote": "transformers_modules.", "registered": "llm_pruner."}[mode])
    for name, expected in here.items():
        torch.testing.assert_close(there[name], expected, atol=1e-6, rtol=1e-6, msg=lambda text, n=name: f"{n}: {text}")
    for name in ("auto", "cpu", "again"):
        torch.testing.assert_close(there[name], here["logits"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(there["loaded_eager"], here["eager"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(there["bf16"], in_bfloat16(models[case]))


def test_without_permission_it_is_refused_and_says_so(reloaded):
    assert "trust_remote_code=True" in reloaded["late"]["error"]
    assert "custom code" in reloaded["late"]["error"]


def test_registered_when_transformers_was_imported_first(reloaded):
    here = reloaded["here"]["llama"]["logits"]
    torch.testing.assert_close(reloaded["late"]["logits"], here, atol=1e-6, rtol=1e-6)


def test_the_stock_class_refuses_the_checkpoint(reloaded):
    with pytest.raises(RuntimeError, match="ize mismatch|mismatched"):
        LlamaForCausalLM.from_pretrained(reloaded["folder"] / "saved" / "llama")


@pytest.mark.parametrize("saved", ["saved", "from_registered", "from_remote"])
def test_the_folder_carries_the_modelling_file_once(reloaded, saved):
    original = Path(per_layer.__file__).with_name("modeling_pruned.py")
    for case in tiny.CASES:
        folder = reloaded["folder"] / saved / case
        assert {path.name: path.read_bytes() for path in folder.glob("*.py")} == {original.name: original.read_bytes()}
        read = AutoConfig.from_pretrained(folder)
        assert read.architectures == [read.auto_map["AutoModelForCausalLM"].removeprefix("modeling_pruned.")]
