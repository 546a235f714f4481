"""The NumPy reference of the kernels' requantization; kernels must equal it bit for bit.

The float form is exact on every target because each step is one correctly rounded IEEE operation and no
multiplication feeds an addition, which a compiler could fuse into one rounding.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def requantize(
    acc: npt.NDArray[np.int32],
    multiplier: npt.NDArray[np.float32] | np.float32,
    zero_point: int,
    lo: int = 0,
    hi: int = 255,
) -> npt.NDArray[np.uint8]:
    """From accumulators int32 [..., O] to codes uint8 of the same shape.

    ``multiplier`` float32 is one value or [O]; [lo, hi] ⊆ [0, 255] is where the activation clips, in codes.
    y = float32(acc) * multiplier; y = min(max(y, lo - zero_point), hi - zero_point);
    q = int32(rint(y)) + zero_point, rounding half to even.
    """
    if not 0 <= lo <= hi <= 255:
        raise ValueError(f"[{lo}, {hi}] is not a range of codes")
    # NumPy would silently compute these in float64 and hide a caller's mistake.
    if acc.dtype != np.int32 or np.asarray(multiplier).dtype != np.float32:
        raise TypeError(
            f"requantize takes int32 and float32, not {acc.dtype} and {np.asarray(multiplier).dtype}"
        )
    with np.errstate(over="ignore"):
        y = np.asarray(acc.astype(np.float32) * multiplier)
    y = np.minimum(np.maximum(y, np.float32(lo - zero_point)), np.float32(hi - zero_point))
    return (np.rint(y).astype(np.int32) + np.int32(zero_point)).astype(np.uint8)


def requantize_multiplier(
    in_scale: float, w_scale: npt.NDArray[np.float32], out_scale: float
) -> npt.NDArray[np.float32]:
    """in_scale * w_scale / out_scale as float32 [O], computed in float64 and rounded once."""
    return (in_scale * w_scale.astype(np.float64) / out_scale).astype(np.float32)
