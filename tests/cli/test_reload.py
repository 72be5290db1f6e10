"""What is saved gives the same in a fresh process: every family cut on every axis, which transformers alone loads."""

import pytest

from tests.support import tiny
from tests.support.fresh import assert_same, reload_in_a_fresh_process
from tests.support.steps import pruned

CASES_AND_AXES = [(case, name) for case in tiny.CASES for name in tiny.axes(case)]


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory):
    """Every family × axis pruned and saved here, then reloaded and run in one fresh process without llm_pruner."""
    models = {(case, name): pruned(tiny.model(case), tiny.axes(case)[name]) for case, name in CASES_AND_AXES}
    return reload_in_a_fresh_process(models, tmp_path_factory.mktemp("reload"))


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), CASES_AND_AXES)
def test_reload_in_a_fresh_process_gives_the_same(reloaded, case, name):
    assert_same(*reloaded[case, name])
