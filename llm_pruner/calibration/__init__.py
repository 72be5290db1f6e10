"""Calibration: from text to windows, one walk through the layers, statistics of weights, activations and gradients."""

__all__ = [
    "activations",
    "data",
    "gradients",
    "hooks",
    "layerwise",
    "memory",
    "needs",
    "records",
    "statistics",
    "texts",
    "weights",
    "windows",
]
