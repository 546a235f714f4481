"""Choosing precisions: the integer program and the fronts that it draws."""
