"""Symmetric integer weights: one scale for each output channel, and for groups an integer multiplier each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError
from tvm_mpq.quantization.groups import Grouping, from_reduction_rows

Clipping = Literal["max", "mse"]

SMALLEST_SCALE = 2.0**-64
"""Below this a channel's weights are noise (batch norm killed the channel) and its scale would leave float32."""


def largest_code(bits: int) -> int:
    """2^(bits-1) - 1: codes are narrow, -largest … largest, so that negation never overflows."""
    if not 2 <= bits <= 8:
        raise ValueError(f"integer weights have 2 to 8 bits, not {bits}")
    return int(2 ** (bits - 1) - 1)


def largest_multiplier(bits: int) -> int:
    """127 // (2^(bits-1) - 1): what a code of ``bits`` bits may be multiplied by and still fit 8 bits."""
    return 127 // largest_code(bits)


@dataclass(frozen=True)
class QuantizedWeights:
    """The weights of one operator: w[k, …] ≈ scale[k] · multiplier[k, group of …] · codes[k, …].

    ``codes`` int8 [K, C, R, S], output channels first (C counts one group of a grouped convolution; a matrix is
    [K, C, 1, 1]), within ±(2^(bits-1) - 1). ``scale`` float32 [K]. With a ``group`` size, ``multiplier`` is uint8
    [K, groups] in 1 … :func:`largest_multiplier` and :class:`~tvm_mpq.quantization.groups.Grouping` says which
    elements a group has; without (0) it is None. Raises ValueError for arrays that do not fit this.
    """

    codes: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]
    bits: int
    multiplier: npt.NDArray[np.uint8] | None = None
    group: int = 0

    def __post_init__(self) -> None:
        limit, k = largest_code(self.bits), len(self.codes)
        if self.codes.dtype != np.int8 or self.codes.ndim != 4 or np.abs(self.codes).max(initial=0) > limit:
            raise ValueError(f"codes must be int8 [K, C, R, S] within ±{limit}")
        if self.scale.dtype != np.float32 or self.scale.shape != (k,) or not (self.scale > 0).all():
            raise ValueError(f"the scale must be float32 [{k}] and positive")
        if (self.multiplier is None) != (self.group == 0):
            raise ValueError("groups need a size and multipliers")
        if self.multiplier is not None:
            shape = (k, Grouping.of(self.codes.shape, self.group).count)
            top = largest_multiplier(self.bits)
            if self.multiplier.dtype != np.uint8 or self.multiplier.shape != shape:
                raise ValueError(f"multipliers must be uint8 {list(shape)}")
            if not ((self.multiplier >= 1) & (self.multiplier <= top)).all():
                raise ValueError(f"multipliers must be 1 to {top}")

    @property
    def element_multiplier(self) -> npt.NDArray[np.uint8]:
        """The multiplier of each element: uint8, the shape of ``codes``, 1 without groups."""
        if self.multiplier is None:
            return np.ones(self.codes.shape, np.uint8)
        rows = self.multiplier[:, Grouping.of(self.codes.shape, self.group).index()]
        return from_reduction_rows(rows, self.codes.shape)

    @property
    def int8(self) -> npt.NDArray[np.int8]:
        """codes · multiplier, int8 of the shape of ``codes``: what kernels of 8-bit weights multiply by."""
        return self.codes if self.multiplier is None else self.codes * self.element_multiplier.view(np.int8)

    @property
    def effective_group(self) -> int:
        """The size of a group; 0 without groups and where all multipliers are 1, which is the same."""
        return 0 if self.multiplier is None or (self.multiplier == 1).all() else self.group

    @property
    def row_multipliers(self) -> npt.NDArray[np.int8]:
        """The multipliers by kernel row, int8 [K, R, groups of a row]: what kernels that multiply groups read."""
        if self.multiplier is None:
            raise ValueError("weights without groups have no multipliers")
        _, channels, rows, columns = self.codes.shape
        index = Grouping.of(self.codes.shape, self.group).index().reshape(rows, columns * channels)
        return self.multiplier[:, index[:, :: self.group]].view(np.int8)

    @property
    def real(self) -> npt.NDArray[np.float32]:
        """The weights these stand for, float32 of the shape of ``codes``."""
        return self.int8 * self.scale[:, None, None, None]


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
    dead = scale < SMALLEST_SCALE
    scale[dead] = 1.0 / largest_code(bits) if dead.all() else np.median(scale[~dead])
    if clipping == "mse":
        scale[~dead] = least_squares(rows[~dead], scale[~dead], largest_code(bits))
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


def least_squares(
    rows: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], limit: int
) -> npt.NDArray[np.float64]:
    """The best of scale * fraction for each row: 24 fractions from 0.1 to 1, then 8 around the best."""
    w = rows.astype(np.float32)
    step = 10.0 ** (-1.0 / 23.0)
    best, least = scale.copy(), squared_error(w, scale, limit)

    def improve(candidate: npt.NDArray[np.float64]) -> None:
        error = squared_error(w, candidate, limit)
        better = error < least
        best[better], least[better] = candidate[better], error[better]

    for power in range(1, 24):
        improve(scale * step**power)
    coarse = best.copy()
    for power in np.linspace(-1.0, 1.0, 10)[1:-1]:
        improve(np.minimum(coarse * step**power, scale))
    return best


def squared_error(
    w: npt.NDArray[np.float32], scale: npt.NDArray[np.float64], limit: int
) -> npt.NDArray[np.float64]:
    """Σ (w - scale · code)² of each row of ``w`` [N, length], codes rounded to nearest and clipped to ±``limit``."""
    step = scale.astype(np.float32)[:, None]
    codes = w / step
    np.rint(codes, out=codes)
    np.clip(codes, -limit, limit, out=codes)
    codes *= step
    codes -= w
    return np.einsum("ij,ij->i", codes, codes).astype(np.float64)
