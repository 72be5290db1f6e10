"""The largest numbers that make sense: beyond them an input is a mistake."""

MOST_LAYERS = 1024  # of a model; beyond, a dry run takes minutes, and none is known
MOST_WIDTH = 2**20  # of a model
MOST_TOKENS = 2**24  # of a window
MOST_SEED = 2**32 - 1  # what numpy's and lm_eval's generators take
