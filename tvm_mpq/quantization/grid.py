"""The affine grid of an activation tensor: unsigned integers, a scale and a zero-point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# A narrower range is taken as zero: its values are noise, and products of such scales leave float32.
_NARROWEST = 2.0**-64


@dataclass(frozen=True)
class Grid:
    """real = (q - zero_point) * scale for q in 0 … 2^bits - 1.

    ``scale`` is exactly a float32, positive and with a finite float32 reciprocal; ``bits`` is 2–8.
    Raises ValueError otherwise.
    """

    scale: float
    zero_point: int
    bits: int = 8

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ValueError(f"a grid has 2 to 8 bits, not {self.bits}")
        if not 0 <= self.zero_point <= self.maximum:
            raise ValueError(f"zero-point {self.zero_point} is outside 0 … {self.maximum}")
        info = np.finfo(np.float32)
        if (
            not (info.tiny <= self.scale <= 1.0 / float(info.tiny))
            or float(np.float32(self.scale)) != self.scale
        ):
            raise ValueError(f"scale {self.scale!r} is not a positive normal float32")

    @classmethod
    def from_range(cls, lo: float, hi: float, bits: int = 8) -> Grid:
        """The grid that covers [lo, hi] widened to include zero, which it represents exactly.

        Rounding the zero-point moves the covered range by at most half a step. A range that is zero (or
        narrower than 2^-64) gets the grid of [0, 1]. Raises ValueError for NaN, infinity or lo > hi.
        """
        if not (math.isfinite(lo) and math.isfinite(hi) and lo <= hi):
            raise ValueError(f"[{lo}, {hi}] is not a range")
        low, high = min(float(lo), 0.0), max(float(hi), 0.0)
        if high - low < _NARROWEST:
            low, high = 0.0, 1.0
        levels = 2**bits - 1
        scale = float(np.float32((high - low) / levels))
        return cls(scale, min(max(round(-low / scale), 0), levels), bits)

    @property
    def maximum(self) -> int:
        """The largest code; the smallest is 0."""
        return int(2**self.bits - 1)

    @property
    def low(self) -> float:
        """The real value of code 0."""
        return -self.zero_point * self.scale

    @property
    def high(self) -> float:
        """The real value of the largest code."""
        return (self.maximum - self.zero_point) * self.scale

    @property
    def inverse_scale(self) -> np.float32:
        """1 / scale as kernels hold it: a float32 division, rounded once."""
        return np.float32(1.0) / np.float32(self.scale)

    def quantize(self, x: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """clip(rint(x * inverse_scale) + zero_point, 0, maximum) in float32, as the kernels do; half to even.

        ``x`` is any float array without NaN (infinities saturate).
        """
        with np.errstate(over="ignore"):
            y = np.asarray(x, np.float32) * self.inverse_scale
        np.rint(y, out=y)
        # Exact wherever it matters: beyond 2^24 the sum may round, but is clipped anyway.
        y += np.float32(self.zero_point)
        np.clip(y, 0, self.maximum, out=y)
        return y.astype(np.uint8)

    def dequantize(self, q: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """(q - zero_point) * scale as float32, one rounding."""
        return (q.astype(np.int32) - self.zero_point).astype(np.float32) * np.float32(self.scale)
