"""Sparse activations and sparse weights: recipes, calibration, kernels, and sweeps over recipes."""

__all__ = ["decode", "register", "run", "semi", "sparsify", "sweep", "targets"]
