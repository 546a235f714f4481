"""Weights to integers by rounding each to the nearest, the scales of least squared error where bits are few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvm_mpq.errors import MpqError
from tvm_mpq.quantization.bias import WEIGHT_MAX, safe_weight_scale
from tvm_mpq.quantization.group_scales import group_scales
from tvm_mpq.quantization.groups import Grouping, reduction_rows
from tvm_mpq.quantization.int16_sums import SUM_WORDS, fit_sums, sum_scales
from tvm_mpq.quantization.weights import (
    QuantizedWeights,
    largest_code,
    largest_multiplier,
    round_weights,
    weight_scales,
)


def round_to_nearest(
    w: npt.NDArray[np.float32], bits: int, group: int = 0, name: str = "weights", paired: bool = False
) -> QuantizedWeights:
    """``w`` float32 [K, C, R, S] in ``bits`` bits, in groups of ``group`` (0: a scale a channel and no groups).

    8 bits map the largest magnitude of a channel to 127, fewer take the scale of the least squared error. Where a
    channel has one group only its multiplier is 1. ``paired``: the sums of codes without groups fit int16
    (:mod:`~tvm_mpq.quantization.int16_sums`). Raises MpqError that names ``name`` for NaN or infinity.
    """
    scale = weight_scales(w, bits, clipping="max" if bits == 8 else "mse", name=name)
    if group == 0:
        scale = sum_scales(w, scale, bits) if paired and bits in SUM_WORDS else scale
        return scaled(w, scale, bits, paired=paired)
    grouping = Grouping.of(w.shape, group)
    multiplier = np.ones((len(w), grouping.count), np.uint8)
    if grouping.count > 1 and largest_multiplier(bits) > 1:
        scale, multiplier = group_scales(reduction_rows(w), grouping, bits)
    return scaled(w, scale, bits, multiplier, group, paired)


def scaled(
    w: npt.NDArray[np.float32],
    scale: npt.NDArray[np.float32],
    bits: int,
    multiplier: npt.NDArray[np.uint8] | None = None,
    group: int = 0,
    paired: bool = False,
) -> QuantizedWeights:
    """``w`` [K, C, R, S] rounded to nearest at these scales [K] and multipliers [K, groups], clipped to the codes.

    ``paired`` as in :func:`round_to_nearest`.
    """
    if multiplier is None:
        codes = round_weights(w, scale, bits)
        if paired and bits in SUM_WORDS:
            codes = fit_sums(codes, w / scale[:, None, None, None], SUM_WORDS[bits])
        return QuantizedWeights(codes, scale, bits)
    unit = QuantizedWeights(np.zeros(w.shape, np.int8), scale, bits, multiplier, group)
    limit = largest_code(bits)
    step = scale.astype(np.float64)[:, None, None, None] * unit.element_multiplier
    codes = np.clip(np.rint(w.astype(np.float64) / step), -limit, limit).astype(np.int8)
    return QuantizedWeights(codes, scale, bits, multiplier, group)


def fit_accumulator(
    quantized: QuantizedWeights,
    w: npt.NDArray[np.float32],
    bias: npt.NDArray[np.floating],
    in_scale: float,
    paired: bool = False,
) -> QuantizedWeights:
    """``quantized`` itself where no sum of its products and ``bias`` can leave int32; else with larger scales there.

    ``w`` are the weights it stands for, ``bias`` is [K] in real units, ``in_scale`` the scale of the 8-bit input.
    Channels whose scale grows are rounded to nearest again, ``paired`` as in :func:`round_to_nearest`. Raises
    MpqError where no scale helps.
    """
    limit, plain = largest_code(quantized.bits), quantized.multiplier is None
    shrinks = plain and bool((np.abs(w) <= (limit + 0.5) * quantized.scale[:, None, None, None]).all())
    largest = limit if plain else WEIGHT_MAX
    scale = safe_weight_scale(quantized.scale, bias, in_scale, w[0].size, largest, shrinks)
    grown = scale != quantized.scale
    if not grown.any():
        return quantized
    again = scaled(w, scale, quantized.bits, quantized.multiplier, quantized.group, paired)
    codes = np.where(grown[:, None, None, None], again.codes, quantized.codes)
    return QuantizedWeights(codes, scale, quantized.bits, quantized.multiplier, quantized.group)


def check_shape(quantized: QuantizedWeights, w: npt.NDArray[np.float32], name: str) -> None:
    """Raise MpqError that names ``name`` unless ``quantized`` has the shape of the operator's weights ``w``."""
    if quantized.codes.shape != w.shape:
        raise MpqError(
            f"the weights given for {name} have shape {list(quantized.codes.shape)}, "
            f"the operator's {list(w.shape)} (output channels first)"
        )
