"""What a network says about one of its inputs or outputs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorSpec:
    """Name, fixed shape (axis 0 is the batch) and NumPy dtype name of a network's input or output."""

    name: str
    shape: tuple[int, ...]
    dtype: str
