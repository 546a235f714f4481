"""Where a resized axis takes its elements from: ONNX's Resize, by its reference formulas, in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

_ROUNDING: dict[str, Callable[[Float64], Float64]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


def positions(size: int, result: int, mode: str) -> Float64:
    """The source coordinate [result] of each element; ``mode`` is ONNX's ``coordinate_transformation_mode``."""
    place = np.arange(result, dtype=np.float64)
    ratio = size / result
    if mode == "asymmetric":
        return place * ratio
    if mode == "align_corners":
        return place * ((size - 1) / (result - 1) if result > 1 else 0.0)
    if mode == "pytorch_half_pixel" and result == 1:
        return np.zeros(1)
    return (place + 0.5) * ratio - 0.5


def nearest(size: int, result: int, mode: str, rounding: str) -> Int32:
    """The source index [result] of each element; ``rounding`` is ONNX's ``nearest_mode``."""
    place = positions(size, result, mode)
    rounded = _ROUNDING[rounding](place)
    return np.clip(rounded, 0, size - 1).astype(np.int32)


def linear(size: int, result: int, mode: str) -> tuple[Int32, Float64]:
    """The two source indices [2, result] of each element and the weight [result] of the second."""
    place = np.clip(positions(size, result, mode), 0, size - 1)
    low = np.floor(place).astype(np.int32)
    return np.stack([low, np.minimum(low + 1, size - 1)]), place - low
