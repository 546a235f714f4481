"""Symmetric integer weights with one scale for each output channel."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError

Clipping = Literal["max", "mse"]

# Below this a channel's weights are noise (batch norm killed the channel) and its scale would leave float32.
_SMALLEST_SCALE = 2.0**-64


def largest_code(bits: int) -> int:
    """2^(bits-1) - 1: codes are narrow, -largest … largest, so that negation never overflows."""
    if not 2 <= bits <= 8:
        raise ValueError(f"integer weights have 2 to 8 bits, not {bits}")
    return int(2 ** (bits - 1) - 1)


def quantize_weights(
    w: npt.NDArray[Any], bits: int = 8, axis: int = 0, clipping: Clipping = "max", name: str = "weights"
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Codes int8 (the shape of ``w``) and scales float32 [O], O being the extent of ``axis``.

    ``w`` ≈ codes * scale. Raises MpqError that names ``name`` for NaN or infinity.
    """
    scale = weight_scales(w, bits, axis, clipping, name)
    return round_weights(w, scale, bits, axis), scale


def weight_scales(
    w: npt.NDArray[Any], bits: int = 8, axis: int = 0, clipping: Clipping = "max", name: str = "weights"
) -> npt.NDArray[np.float32]:
    """The scale float32 [O] of each output channel.

    ``max`` maps the largest magnitude to the largest code; ``mse`` takes the scale of the least squared error
    of round-to-nearest, which clips outliers where bits are few. An all-zero channel gets the median scale of
    the others (1 / largest code where there are none): any would do for its weights, and its bias keeps a
    sensible resolution. Raises MpqError that names ``name`` for NaN or infinity.
    """
    if not np.isfinite(w).all():
        at = np.argwhere(~np.isfinite(w))[0]
        raise MpqError(f"{name} hold NaN or infinity at {at.tolist()}: the network cannot be quantized")
    rows = np.moveaxis(np.asarray(w, np.float64), axis, 0)
    rows = rows.reshape(len(rows), -1)
    largest = np.abs(rows).max(axis=1, initial=0.0)
    scale = largest / largest_code(bits)
    dead = scale < _SMALLEST_SCALE
    scale[dead] = 1.0 / largest_code(bits) if dead.all() else np.median(scale[~dead])
    if clipping == "mse":
        scale[~dead] = _least_squares(rows[~dead], scale[~dead], largest_code(bits))
    return scale.astype(np.float32)


def round_weights(
    w: npt.NDArray[Any], scale: npt.NDArray[np.float32], bits: int = 8, axis: int = 0
) -> npt.NDArray[np.int8]:
    """Codes int8 (the shape of ``w``): nearest to w / scale, half to even, clipped to the narrow range."""
    shape = [1] * np.ndim(w)
    shape[axis] = -1
    limit = largest_code(bits)
    exact = np.asarray(w, np.float64) / scale.astype(np.float64).reshape(shape)
    return np.clip(np.rint(exact), -limit, limit).astype(np.int8)


def _least_squares(
    rows: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], limit: int
) -> npt.NDArray[np.float64]:
    """The best of scale * fraction for each row: 24 fractions from 0.1 to 1, then 8 around the best."""
    w = rows.astype(np.float32)
    step = 10.0 ** (-1.0 / 23.0)
    best, least = scale.copy(), _squared_error(w, scale, limit)

    def improve(candidate: npt.NDArray[np.float64]) -> None:
        error = _squared_error(w, candidate, limit)
        better = error < least
        best[better], least[better] = candidate[better], error[better]

    for power in range(1, 24):
        improve(scale * step**power)
    coarse = best.copy()
    for power in np.linspace(-1.0, 1.0, 10)[1:-1]:
        improve(np.minimum(coarse * step**power, scale))
    return best


def _squared_error(
    w: npt.NDArray[np.float32], scale: npt.NDArray[np.float64], limit: int
) -> npt.NDArray[np.float64]:
    step = scale.astype(np.float32)[:, None]
    codes = w / step
    np.rint(codes, out=codes)
    np.clip(codes, -limit, limit, out=codes)
    codes *= step
    codes -= w
    return np.einsum("ij,ij->i", codes, codes).astype(np.float64)
