"""The fixed-point form of a sum of two 8-bit tensors on different grids."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.grid import Grid

_BITS = 21
"""255 · 2^21 · 2 terms and their zero-points stay below 2^31."""


def addition_factors(
    a: Grid, b: Grid, out: Grid, subtract: bool = False
) -> tuple[npt.NDArray[np.int32], np.float32]:
    """(factors int32[3], multiplier) with ``out code ≈ (qa·f0 + qb·f1 + f2) · multiplier + out.zero_point``.

    The factors are the ratios a.scale / out.scale and b.scale / out.scale times a power of two, rounded: the
    integer sum is exact, and the one rounding is that of the requantization. The multiplier is the power's
    reciprocal. With ``subtract`` the second factor is negative.
    """
    ratios = np.array([a.scale, b.scale], np.float64) / out.scale
    shift = _BITS - math.ceil(math.log2(float(ratios.max())))
    fixed = np.rint(ratios * 2.0**shift).astype(np.int64)
    if subtract:
        fixed[1] = -fixed[1]
    offset = -int(fixed[0]) * a.zero_point - int(fixed[1]) * b.zero_point
    # Where the result's grid is so fine that the multiplier would exceed 1, every sum that the factors
    # resolve saturates anyway; a larger product would leave int32.
    return np.array([*fixed, offset], np.int64).astype(np.int32), np.float32(min(2.0**-shift, 1.0))
