"""Biases in the accumulator's int32 grid, and weight scales that keep the accumulator inside it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError

_LIMIT = 2**31 - 1
ACTIVATION_MAX = 255
WEIGHT_MAX = 127


def quantize_bias(
    bias: npt.NDArray[np.floating], in_scale: float, w_scale: npt.NDArray[np.float32]
) -> npt.NDArray[np.int32]:
    """rint(bias / (in_scale * w_scale)) as int32 [O], half to even; ``bias`` and ``w_scale`` are [O].

    Raises ValueError where that does not fit int32: take ``w_scale`` from :func:`safe_weight_scale`.
    """
    exact = np.rint(np.asarray(bias, np.float64) / (in_scale * w_scale.astype(np.float64)))
    if not (np.abs(exact) <= _LIMIT).all():
        raise ValueError("a bias does not fit int32 at this scale")
    return exact.astype(np.int32)


def safe_weight_scale(
    w_scale: npt.NDArray[np.float32],
    bias: npt.NDArray[np.floating],
    in_scale: float,
    reduction: int,
    largest: int = WEIGHT_MAX,
    shrinks: bool = True,
) -> npt.NDArray[np.float32]:
    """``w_scale`` float32 [O], enlarged where an accumulator could otherwise leave int32.

    ``bias`` is [O] in real units, ``in_scale`` the scale of the 8-bit input, ``reduction`` the number of
    products an output sums, ``largest`` the magnitude that a code can have. The bound is
    255·|code|·reduction + |bias| / (in_scale · w_scale) <= 2^31 - 1 for every input; a channel that batch norm made
    almost zero but left a bias is what usually breaks it. ``shrinks``: a larger scale makes every code smaller, as
    without clipping and group multipliers. Quantize the weights with the scale returned. Raises MpqError for a bias
    that is NaN or infinite and for a reduction so long that no scale helps.
    """
    if not np.isfinite(bias).all():
        raise MpqError("a bias holds NaN or infinity: the network cannot be quantized")
    scale = w_scale.astype(np.float64)
    products = float(ACTIVATION_MAX * largest * reduction)
    total = products + np.abs(np.asarray(bias, np.float64)) / (in_scale * scale) + 1.0
    # A code is at most largest / factor rounded up by 1/2, the bias by 1/2: that part does not shrink.
    fixed = (0.5 * ACTIVATION_MAX * reduction if shrinks else products) + 1.0
    if fixed >= _LIMIT:
        raise MpqError(f"an operator that sums {reduction} products does not fit 32-bit accumulators")
    factor = np.where(total <= _LIMIT, 1.0, total / (_LIMIT - fixed))
    enlarged = (scale * factor).astype(np.float32)
    return np.where(factor > 1.0, np.nextafter(enlarged, np.float32(np.inf)), w_scale).astype(np.float32)


def fold_zero_point(
    bias: npt.NDArray[np.int32], codes: npt.NDArray[np.int8], zero_point: int
) -> npt.NDArray[np.int32]:
    """bias - zero_point * Σ codes, int32 [O], for ``codes`` int8 [O, …].

    With it Σ q·codes + bias over unsigned inputs q equals Σ (q - zero_point)·codes + bias, provided that
    padding holds ``zero_point``. Wraps around like the kernels' int32, which the sum undoes.
    """
    sums = codes.reshape(len(codes), -1).sum(axis=1, dtype=np.int64)
    return (bias.astype(np.int64) - zero_point * sums).astype(np.int32)
