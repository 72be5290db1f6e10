"""Where the output goes."""

from dataclasses import replace

import pytest

from llm_pruner.config.prune import PruneOptions
from llm_pruner.errors import UsageError
from llm_pruner.output.places import check_outputs
from tests.support.commands import DEMO


def test_options_of_a_criterion_are_no_part_of_a_folders_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = PruneOptions(model="demo", param_ratio=0.3, importance="flap:metrics=IFV")
    plain = replace(options, importance="flap")
    assert check_outputs(options, str(DEMO)) == check_outputs(plain, str(DEMO))
    assert check_outputs(options, str(DEMO)).name.endswith("-flap")


def test_no_output_takes_the_place_of_a_text_that_has_a_share(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "b.txt").write_text("words")
    options = PruneOptions(model="demo", param_ratio=0.3, importance="amp", calibration_data=("a.txt", "b.txt=0.25"))
    for place in ("a.txt", "b.txt"):
        with pytest.raises(UsageError, match=f"is calibration_data.* {place}, which this run needs"):
            check_outputs(replace(options, scores=str(tmp_path / place)), str(DEMO))
