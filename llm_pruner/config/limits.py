"""What is legal: the names that a few options know, and the largest numbers that make sense."""

# FLAP's: uniform or adaptive layers; modules U, manual or A
STRUCTURES = ("UL-UM", "UL-MM", "AL-MM", "AL-AM")
# in which scores decide
ORDERS = ("standard", "reversed", "random")
# for the units that go
COMPENSATE = ("none", "bias")

# of a model; beyond, a dry run takes minutes, and none is known
MOST_LAYERS = 1024
# of a model
MOST_WIDTH = 2**20
# of a window
MOST_TOKENS = 2**24
# what numpy's and lm_eval's generators take
MOST_SEED = 2**32 - 1
