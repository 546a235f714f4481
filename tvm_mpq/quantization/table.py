"""A function from one 8-bit grid to another as 256 codes: exact whatever the function, the same on every target."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.grid import Grid

Float64 = npt.NDArray[np.float64]


def code_table(function: Callable[[Float64], Float64], source: Grid, out: Grid) -> npt.NDArray[np.uint8]:
    """uint8 [256]: entry q is ``clip(rint(f((q − z_in) · s_in) / s_out) + z_out, 0, 255)``, in float64.

    Infinities saturate. Where the function has no value (a logarithm below zero) the entry is zero's code: samples
    never led there, since calibration refuses NaN.
    """
    x = (np.arange(256, dtype=np.float64) - source.zero_point) * source.scale
    with np.errstate(all="ignore"):
        codes = np.rint(function(x) / out.scale) + out.zero_point
    return np.clip(np.nan_to_num(codes, nan=out.zero_point), 0, out.maximum).astype(np.uint8)
