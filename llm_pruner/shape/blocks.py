"""Attentions and MLPs as wholes: how large they are, and a budget of whole attentions and some neurons."""

from dataclasses import dataclass

from llm_pruner.errors import PlanError
from llm_pruner.model.axes import HEADS, KV_HEADS, LAYER, MLP, Axis, Widths
from llm_pruner.shape.counter import ParameterCounter

# of 2SSP: the larger, the more attentions go
ALPHA = 1.5


@dataclass(frozen=True)
class Blocks:
    """How large the parts of a model's decoder layers are, which are all alike.

    Attributes:
        layers: Number of layers.
        attention: Parameters of one attention, biases and norms inside it included.
        mlp: Parameters of one MLP.
        decoder: Parameters of all decoder layers, norms included.
        neurons: Neurons of one MLP.
    """

    layers: int
    attention: int
    mlp: int
    decoder: int
    neurons: int

    @classmethod
    def of(cls, counter: ParameterCounter, model_type: str) -> "Blocks":
        """Measure the parts of a model.

        Args:
            counter: The model's parameter counter.
            model_type: Of the model, for the message.

        Raises:
            PlanError: A layer is not one attention and one MLP.
        """
        inside = {axis for axis in counter.before.prunable if axis.scope == LAYER}
        if other := sorted(axis.name for axis in inside - {HEADS, KV_HEADS, MLP}):
            raise PlanError(f"{model_type} has {other[0]} in its layers, which are not one attention and one MLP each")

        def size(axis: Axis) -> int:
            left = counter.total((without(counter.before, axis), *counter.full[1:]))
            return int(counter.total(counter.full) - left)

        decoder = counter.of_layer_0() * counter.num_layers
        return cls(counter.num_layers, size(HEADS), size(MLP), decoder, counter.before[MLP])

    def of_axis(self, axis: Axis) -> int:
        """Return the parameters of one attention (HEADS) or one MLP (MLP)."""
        return self.attention if axis == HEADS else self.mlp


def two_stages(blocks: Blocks, share: float) -> tuple[int, int]:
    """Return how many attentions go and how many neurons stay in every layer, by 2SSP's rule.

    A = round(L·s^(m/(a·α))) attentions go, α = 1.5, and the neurons of every layer share the rest of the budget: with
    T = round(s·D), each MLP loses p = round((T − A·a)/L) parameters and keeps k = round(I·(1 − p/m)) neurons. Halves
    are rounded to the even number. Sandri et al., 2SSP: A Two-Stage Framework for Structured Pruning of LLMs,
    https://arxiv.org/abs/2501.17771.

    Args:
        blocks: The parts of the model.
        share: s, of the parameters of all decoder layers.

    Returns:
        A and k.

    Raises:
        PlanError: The rule does not give that share.
    """
    attention, mlp, layers, decoder = blocks.attention, blocks.mlp, blocks.layers, blocks.decoder
    attentions = round(layers * share ** (mlp / attention / ALPHA))
    lowest, highest = attentions * attention / decoder, (attentions * attention + layers * mlp) / decoder
    lost = round((round(share * decoder) - attentions * attention) / layers)
    kept = round(blocks.neurons * (1 - lost / mlp))
    if not lowest <= share <= highest or kept < 1:
        raise PlanError(
            f"`param_ratio` {share:g} is {attentions} whole attentions by 2SSP's rule, with which {lowest:.3g} to "
            f"{highest:.3g} of the decoder can go; ask for {'more' if share < lowest else 'less'}"
        )
    return attentions, kept


def without(widths: Widths, *axes: Axis) -> Widths:
    """Return the widths of a layer without its attention (HEADS), its MLP (MLP) or both.

    Args:
        widths: The widths of the layer.
        axes: HEADS, MLP or both.
    """
    return widths.but({gone: 0 for axis in axes for gone in ((HEADS, KV_HEADS) if axis == HEADS else (axis,))})
