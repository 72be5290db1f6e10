"""Where the output goes."""

from dataclasses import replace

from llm_pruner.config.prune import PruneOptions
from llm_pruner.output.places import check_outputs
from tests.support.commands import DEMO


def test_options_of_a_criterion_are_no_part_of_a_folders_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = PruneOptions(model="demo", param_ratio=0.3, importance="flap:metrics=IFV")
    plain = replace(options, importance="flap")
    assert check_outputs(options, str(DEMO)) == check_outputs(plain, str(DEMO))
    assert check_outputs(options, str(DEMO)).name.endswith("-flap")
