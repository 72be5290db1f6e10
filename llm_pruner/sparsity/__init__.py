"""Sparse activations and sparse weights: recipes, calibration, kernels, and sweeps over recipes."""
