"""Weights rounded to floats of 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_LARGEST = {"float16": 65519.996, "bfloat16": 3.3961775e38}
"""The largest float32 that does not round to infinity."""


def holds(dtype: str, w: npt.NDArray[np.float32]) -> bool:
    """Whether every weight stays finite in ``dtype`` ("float16" or "bfloat16")."""
    return bool(np.abs(w).max(initial=0.0) <= _LARGEST[dtype])


def to_half(w: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """``w`` rounded to nearest even: an array of float16, or of the uint16 bits of bfloat16."""
    if dtype == "float16":
        return w.astype(np.float16)
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_half(w: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """What :func:`to_half` stands for."""
    if w.dtype == np.float16:
        return w.astype(np.float32)
    return (w.astype(np.uint32) << 16).view(np.float32)
