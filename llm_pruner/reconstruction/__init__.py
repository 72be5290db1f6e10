"""Reconstruction: least squares, second-order selection, rotation, optimisation of layers, costs, search for shapes."""
