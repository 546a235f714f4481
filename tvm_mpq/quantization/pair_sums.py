"""8-bit weight codes whose pair sums fit int16, so that the fastest instruction of AVX2 and AVX-512 is exact.

``vpmaddubsw`` multiplies u8 activations by s8 weights and adds neighbours in int16, where it saturates: 255 · 127 +
255 · 127 does not fit. Any activations fit when in each pair the positive codes add to at most 128 and the negative
ones to at least −128 (255 · 128 = 32640 ≤ 32767). Codes get there by a slightly larger scale for the channel and by
taking what is still too much off both codes of a pair; which of the two more is a matter of squared error. The
codes are the same for all targets, so that all give the same bytes.

ONNX Runtime's ``reduce_range`` halves every code for the same end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LIMIT = 128
"""The largest sum of the positive (or of the negated negative) codes of a pair."""
_STEPS = 6


def pairs(weight: Array) -> Array:
    """[O, I, R, S] → [O, R · ceil(S·I / 2), 2]: neighbours in the order of the reduction, each kernel row for itself.

    The last of an odd row stands with a zero.
    """
    o, i, r, s = weight.shape
    rows = weight.transpose(0, 2, 3, 1).reshape(o, r, s * i)
    return np.pad(rows, ((0, 0), (0, 0), (0, s * i % 2))).reshape(o, -1, 2)


def _unpaired(values: Array, shape: tuple[int, ...]) -> Array:
    o, i, r, s = shape
    rows = values.reshape(o, r, -1)[:, :, : s * i]
    return np.ascontiguousarray(rows.reshape(o, r, s, i).transpose(0, 3, 1, 2))


def pair_sums_fit(codes: Array) -> bool:
    """Whether no activations can make a pair of the int8 ``codes`` [O, I, R, S] leave int16."""
    return int(_largest(pairs(codes).astype(np.int16)).max(initial=0)) <= LIMIT


def _largest(two: Array) -> Array:
    """[O, pairs, 2] → the larger magnitude [O, pairs] of the sums of the positive and of the negative members."""
    positive = np.maximum(two, 0).sum(axis=-1)
    negative = np.maximum(-two, 0).sum(axis=-1)
    return np.maximum(positive, negative)


def fit_pair_sums(codes: Array) -> npt.NDArray[np.int8]:
    """The nearest int8 codes [O, I, R, S] to ``codes`` whose pair sums fit: the excess comes off both of a pair."""
    return _unpaired(_fit(pairs(codes).astype(np.int16)), codes.shape).astype(np.int8)


def _fit(two: Array) -> Array:
    excess = np.maximum(np.abs(two).sum(axis=-1) - LIMIT, 0)
    excess[(two[..., 0] < 0) != (two[..., 1] < 0)] = 0
    first = np.abs(two[..., 0]) >= np.abs(two[..., 1])
    larger, smaller = (excess + 1) // 2, excess // 2
    # Both keep their sign: a code of magnitude ≤ 127 exceeds with another of at least excess + 1.
    cut = np.stack([np.where(first, larger, smaller), np.where(first, smaller, larger)], axis=-1)
    return two - np.sign(two) * cut


def pair_scales(weight: npt.NDArray[np.float32], scale: Array) -> npt.NDArray[np.float32]:
    """Per-channel scales [O] from ``scale`` (of full-range codes) upwards with the least squared error of fitted codes.

    ``weight`` is [O, I, R, S]. A channel whose pairs fit already keeps its scale.
    """
    two = pairs(weight)
    needed = (_largest(two).max(axis=1, initial=0.0) / LIMIT).astype(np.float32)
    best = scale.astype(np.float32)
    wide = np.flatnonzero(needed > best)
    if not len(wide):
        return best
    two, low, high = two[wide], best[wide], needed[wide]
    least = np.full(len(wide), np.inf)
    chosen = low.copy()
    for step in range(_STEPS + 1):
        candidate = (low * (high / low) ** np.float32(step / _STEPS)).astype(np.float32)
        codes = _fit(np.clip(np.rint(two / candidate[:, None, None]), -127, 127).astype(np.int16))
        difference = codes * candidate[:, None, None] - two
        error = np.einsum("ijk,ijk->i", difference, difference, dtype=np.float64)
        better = error < least
        least[better], chosen[better] = error[better], candidate[better]
    best[wide] = chosen
    return best
