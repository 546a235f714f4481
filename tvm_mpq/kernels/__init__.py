"""Operator definitions (TE), intrinsics and schedule templates: what an operator becomes on a device."""
