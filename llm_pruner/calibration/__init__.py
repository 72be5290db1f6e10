"""Calibration: from text to windows, one walk through the layers, statistics of weights, activations and gradients."""

__all__ = [
    "activations",
    "data",
    "gradients",
    "hooks",
    "layerwise",
    "memory",
    "mixtures",
    "needs",
    "prompts",
    "records",
    "self_written",
    "statistics",
    "texts",
    "weights",
    "windows",
]
