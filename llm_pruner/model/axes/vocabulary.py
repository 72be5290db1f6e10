"""The tokens of the vocabulary: rows of the embeddings and of lm_head.

No family lists the axis: what a token is worth is told by a text and a tokenizer, not by weights
(`llm_pruner.vocabulary`). The widths of a plan have it where tokens go.
"""

from llm_pruner.model.axes.axis import MODEL, Axis

VOCAB = Axis("vocab", "vocab_size", MODEL, is_rounded=True)
