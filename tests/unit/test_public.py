"""The public names of the package."""

import types

import pytest

import llm_pruner


@pytest.mark.parametrize(
    "options",
    [
        {"pruning_ratio": -0.5},
        {"pruning_ratio": float("nan")},
        {"pruning_ratio": 0.5, "round_to": 0},
        {"dtype": "bf16"},
    ],
)
def test_options_made_in_python_are_checked_too(options):
    wrong = llm_pruner.PruneOptions(model="demo", no_save=True, **options)
    with pytest.raises(llm_pruner.PrunerError):
        llm_pruner.prune_checkpoint(wrong)


@pytest.mark.parametrize("name", llm_pruner.__all__)
def test_public_names_are_not_hidden_by_modules(name):
    """Importing a submodule binds its name on the package: a public function must not share it."""
    getattr(llm_pruner, name)
    assert not isinstance(getattr(llm_pruner, name), types.ModuleType)
