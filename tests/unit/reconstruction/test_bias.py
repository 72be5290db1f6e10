"""The biases that compensate for removed units, by hand."""

from llm_pruner.model.axes import HEADS, HIDDEN, MLP
from llm_pruner.model.groups import Group, Member
from llm_pruner.reconstruction.bias import output_biases
from tests.support.toys import WEIGHT, measured


def test_bias_is_what_the_removed_columns_gave_on_average():
    """W_P·x̄_P. Heads, the first goes: (1·2 + 2·1, 1·2 - 2·1) = (4, 0). Neurons, 0 and 2 go: (1·2 + 0·0, 1·2 + 1·0)."""
    heads, neurons = (
        Group("layers.0.heads", HEADS, 0, 2, (Member("o.weight", 1, "linear", 0, 2, 2, reads=True),)),
        Group("layers.0.mlp", MLP, 0, 3, (Member("down.weight", 1, "linear", reads=True),)),
    )
    hidden = Group("hidden", HIDDEN, None, 2, ())
    weights = {"o.weight": WEIGHT, "down.weight": WEIGHT[:, :3]}
    means = {"o.weight": measured().mean, "down.weight": measured().mean[:3]}
    kept = {"hidden": [0, 1], "layers.0.heads": [1], "layers.0.mlp": [1]}
    biases = output_biases([hidden, heads, neurons], kept, weights, means)
    assert {name: bias.tolist() for name, bias in biases.items()} == {"o.bias": [4, 0], "down.bias": [2, 2]}
    kept = {"hidden": [1], "layers.0.heads": [0], "layers.0.mlp": [0, 1, 2]}  # head 1: 1·0 - 4·5
    biases = output_biases([hidden, heads, neurons], kept, weights, means)
    assert {name: bias.tolist() for name, bias in biases.items()} == {"o.bias": [-20], "down.bias": [0]}
