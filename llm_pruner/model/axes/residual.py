"""The channels of the residual stream, which run through the whole model."""

from llm_pruner.model.axes.axis import MODEL, Axis

HIDDEN = Axis("hidden", "hidden_size", MODEL, also=("n_embd",), is_rounded=True)
