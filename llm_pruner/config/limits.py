"""What is legal: the names that a few options know, and the largest numbers that make sense."""

STRUCTURES = ("UL-UM", "UL-MM", "AL-MM", "AL-AM")  # FLAP's: uniform or adaptive layers; modules U, manual or A
ORDERS = ("standard", "reversed", "random")  # in which scores decide
COMPENSATE = ("none", "bias")  # for the units that go

MOST_LAYERS = 1024  # of a model; beyond, a dry run takes minutes, and none is known
MOST_WIDTH = 2**20  # of a model
MOST_TOKENS = 2**24  # of a window
MOST_SEED = 2**32 - 1  # what numpy's and lm_eval's generators take
