"""Reconstruction: least squares, second-order selection, rotation, optimisation of layers, costs, search for shapes."""

__all__ = ["baseline", "bias", "block_optimisation", "costs", "layer", "planned", "reconstruct", "search", "tokens"]
