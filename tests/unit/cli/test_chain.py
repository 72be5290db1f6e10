"""What a recovery takes over from the pruning that it follows."""

from llm_pruner.cli.chain import recovery_options
from llm_pruner.config.prune import PruneOptions


def test_methods_by_name(tmp_path):
    options = PruneOptions(model="demo", pruning_ratio=0.5, eval_data="demo", recover="lora", device="cpu")
    recovery = recovery_options(options, tmp_path / "half")
    assert (recovery.method, recovery.model, recovery.device) == ("lora", str(tmp_path / "half"), "cpu")
    assert recovery.eval_data == "demo"
