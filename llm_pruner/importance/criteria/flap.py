"""FLAP: units whose output hardly fluctuates can be replaced by a bias."""

from dataclasses import dataclass

from llm_pruner.calibration.needs import MOMENTS, WEIGHTS
from llm_pruner.calibration.statistics import Calibration
from llm_pruner.importance.criterion import COLUMN, OUTPUT_AXES, Criterion
from llm_pruner.model.axes import MLP
from llm_pruner.model.groups import output_projection


@dataclass(frozen=True)
class Flap(Criterion):
    """Fluctuation of each input column j of o_proj or down_proj, by one of three metrics.

    IFV: Var(X_j). WIFV: Var(X_j)·‖W_:j‖₂². WIFN: mean over rows of |W_ij|·‖X_j‖₂. The variance is the population's.
    A head's columns are squared before they are summed; a neuron is one column, as it is.
    An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024,
    https://arxiv.org/abs/2312.11983.

    Attributes:
        metrics: IFV, WIFV or WIFN.
    """

    metrics: str = "WIFV"

    name = "flap"
    needs = frozenset((WEIGHTS, MOMENTS))
    axes = OUTPUT_AXES
    calibration = Calibration("wikitext2", nsamples=1024, seq_len=128)
    per = COLUMN
    choices = {"metrics": ("IFV", "WIFV", "WIFN")}

    def score(self, group, statistics):
        member = output_projection(group)
        inputs, weights = statistics.inputs[member.parameter], statistics.weights
        if self.metrics == "IFV":
            columns = inputs.variance
        elif self.metrics == "WIFV":
            columns = inputs.variance * weights.squared_sums(member.parameter)[member.dim].to(inputs.variance)
        else:
            columns = inputs.norm * weights.absolute_means(member.parameter, member.dim).to(inputs.norm)
        return columns if group.axis == MLP else columns.square()
