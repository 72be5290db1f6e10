"""Calibration: from text to windows, one walk through the layers, statistics of weights, activations and gradients."""
