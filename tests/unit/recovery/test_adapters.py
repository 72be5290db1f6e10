"""LoRA adapters: where they go, and that they are merged without a trace."""

import pytest
import torch

from llm_pruner.config.recover import RecoverOptions
from llm_pruner.errors import UsageError
from llm_pruner.recovery.adapters import merged, projections, with_adapters
from tests.support import tiny


@pytest.mark.parametrize("case", ["llama", "phi3", "gpt2", "gpt_neox"])
def test_merging_changes_no_logits(case):
    model = with_adapters(tiny.model(case), RecoverOptions(lora_r=4))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == len(projections(tiny.model(case)))
    model.eval()
    adapted = tiny.logits(model)
    assert (adapted - tiny.logits(tiny.model(case))).abs().max() > 1e-2
    assert torch.allclose(tiny.logits(merged(model)), adapted, atol=1e-4)


def test_targets_of_the_adapters():
    model = with_adapters(tiny.model("llama"), RecoverOptions(lora_targets="q_proj, v_proj"))
    names = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_parameters() if "lora_A" in name}
    assert names == {"q_proj", "v_proj"}
    with pytest.raises(UsageError, match="'c_attn' in this model"):
        with_adapters(tiny.model("llama"), RecoverOptions(lora_targets="c_attn"))
