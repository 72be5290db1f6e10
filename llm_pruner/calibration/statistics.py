"""What criteria are computed from: statistics of weights, activations and gradients, and the text they are of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_pruner.calibration.activations import Inputs
    from llm_pruner.calibration.gradients import Products
    from llm_pruner.calibration.weights import Weights


@dataclass(frozen=True)
class Statistics:
    """Calibration statistics; only those that were asked for are there.

    Attributes:
        weights: Sums over the weights.
        inputs: Statistics of what the output projections are given, by the names of their weights.
        products: Weight times gradient, by parameter.
    """

    weights: "Weights | None" = None
    inputs: "Mapping[str, Inputs]" = field(default_factory=dict)
    products: "Mapping[str, Products]" = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """Calibration text.

    Attributes:
        data: A data set, a file or a mixture; or several with their shares, as in `mixtures.parsed`.
        nsamples: Number of windows or prompts.
        seq_len: Tokens of each at most.
    """

    data: str | tuple[str, ...] = "wikitext2"
    nsamples: int = 128
    seq_len: int = 128
