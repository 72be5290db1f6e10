"""The published methods by their options, and models that are deep enough for them."""

from tests.support import tiny

METHODS: dict[str, dict] = {
    "amp": {"importance": "amp", "iteration": 1},
    "amp by parameters": {"importance": "amp", "param_ratio": 0.4},
    "flap": {"importance": "flap", "structure": "AL-AM", "pruning_ratio": 0.4, "compensate": "bias"},
    "flap AL-MM": {"importance": "flap", "metrics": "WIFN", "structure": "AL-MM", "remove_heads": 2,
        "param_ratio": 0.3,
    },
    "flap UL-UM": {"importance": "flap", "structure": "UL-UM", "pruning_ratio": 0.5, "compensate": "bias"},
    "flap uniform": {"importance": "flap", "structure": "AL-AM", "param_ratio": 0.4, "uniform": True},
    "wanda_sp": {"importance": "wanda_sp", "structure": "UL-MM", "remove_heads": 16, "pruning_ratio": 0.4},
    "mag_sp": {"importance": "mag_sp", "structure": "UL-UM", "pruning_ratio": 0.5, "order": "reversed"},
    "taylor": {"importance": "taylor", "pruning_ratio": 0.5},
    "taylor vectorize": {
        "importance": "taylor", "taylor": "vectorize", "param_ratio": 0.4, "prune": "hidden,heads,mlp",
    },
}  # fmt: skip


def deep(case: str, **changes):
    """Of four layers, so that they can differ."""
    types = tiny.CASES[case][1].get("layer_types")
    return tiny.model(case, num_hidden_layers=4, **({"layer_types": types * 2} if types else {}), **changes)
