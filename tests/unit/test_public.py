"""The public names of the package."""

import types

import pytest

import llm_pruner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pruning_ratio": -0.5}, "pruning_ratio: -0.5 is not a ratio"),
        ({"pruning_ratio": float("nan")}, "pruning_ratio: nan is not a ratio"),
        ({"round_to": 0}, "round_to: 0 must be a whole number of at least 1"),
        ({"dtype": "bf16"}, "dtype: 'bf16'.*did you mean 'bfloat16'"),
    ],
)
def test_options_made_in_python_are_checked_too(options, message):
    wrong = llm_pruner.PruneOptions(model="demo", no_save=True, **{"pruning_ratio": 0.5, **options})
    with pytest.raises(llm_pruner.PrunerError, match=message):
        llm_pruner.prune_checkpoint(wrong)


@pytest.mark.parametrize("name", llm_pruner.__all__)
def test_public_names_are_not_hidden_by_modules(name):
    """Importing a submodule binds its name on the package: a public function must not share it."""
    getattr(llm_pruner, name)
    assert not isinstance(getattr(llm_pruner, name), types.ModuleType)
