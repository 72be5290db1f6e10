"""The names of statistics, as criteria ask for them.

`moments`, `absolute` and `contribution` are statistics of what the output projections of a layer are given.
"""

MOMENTS, ABSOLUTE, CONTRIBUTION = "moments", "absolute", "contribution"
ACTIVATIONS = (MOMENTS, ABSOLUTE, CONTRIBUTION)
WEIGHTS, GRADIENTS = "weights", "gradients"
NEEDS = (WEIGHTS, *ACTIVATIONS, GRADIENTS)
