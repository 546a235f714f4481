"""Quantization numerics in NumPy: grids, ranges, weights, biases, and the kernels' requantization."""
