"""From a histogram to the range that deserves an 8-bit grid: by percentile, squared error, entropy or the loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.histogram import Histogram

Vector = npt.NDArray[np.float64]
# (lows [m], highs [m]) → cost [m] of each candidate range.
_Cost = Callable[[Vector, Vector], Vector]

_LEVELS = 255


def percentile_range(histogram: Histogram, percentile: float) -> tuple[float, float]:
    """The range of the central ``percentile`` percent of all values, linear inside a cell, zero included."""
    counts = histogram.counts.copy()
    counts[-histogram.start] += histogram.zeros
    cut = counts.sum() * (100.0 - percentile) / 200.0
    low = (histogram.start + _cells_before(counts, cut)) * histogram.width
    high = (histogram.start + len(counts) - _cells_before(counts[::-1], cut)) * histogram.width
    return min(max(low, histogram.low), 0.0), max(min(high, histogram.high), 0.0)


def least_squares_range(histogram: Histogram) -> tuple[float, float]:
    """The range whose 8-bit grid has the least sum of squared rounding and clipping errors."""
    centers, counts = _occupied(histogram)

    def cost(lows: Vector, highs: Vector) -> Vector:
        return np.asarray(_errors(centers, lows, highs) ** 2 @ counts, np.float64)

    return _search(histogram.low, histogram.high, cost)


def least_loss_range(
    low: float, high: float, values: Vector, gradients: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """The range inside (low, high) of least E (Σ g·e)², e the rounding and clipping errors of ``values`` [cells].

    ``gradients`` [samples, cells] are the sums of g = ∂loss/∂value over each sample's values in a cell.
    """

    def cost(lows: Vector, highs: Vector) -> Vector:
        return np.asarray(np.mean((_errors(values, lows, highs) @ gradients.T) ** 2, axis=1), np.float64)

    return _search(low, high, cost)


def entropy_range(histogram: Histogram) -> tuple[float, float]:
    """The range whose 8-bit grid has the least KL divergence from what was seen.

    As in TensorRT's calibrator (Migacz, "8-bit inference with TensorRT", GTC 2017), with a low end as well:
    the reference adds clipped values to the outermost cells kept, and the quantized distribution spreads the
    mass of each level evenly over its cells that hold values. Exact zeros are left out, as there.
    """
    centers, counts = _occupied(histogram)

    def cost(lows: Vector, highs: Vector) -> Vector:
        return np.array([_divergence(centers, counts, lo, hi) for lo, hi in zip(lows, highs, strict=True)])

    return _search(histogram.low, histogram.high, cost)


def _errors(values: Vector, lows: Vector, highs: Vector) -> npt.NDArray[np.float64]:
    """What the 8-bit grid of each candidate range adds to each of ``values``, [candidates, values]."""
    scale = (highs - lows)[:, None] / _LEVELS
    zero = np.rint(-lows[:, None] / scale)
    codes = np.clip(np.rint(values / scale), -zero, _LEVELS - zero)
    return np.asarray(codes * scale - values, np.float64)


def _cells_before(counts: npt.NDArray[np.int64], cut: float) -> float:
    """How many cells from the start hold the first ``cut`` values; the last one counts in part."""
    upto = np.cumsum(counts)
    cell = min(int(np.searchsorted(upto, cut, "right")), len(counts) - 1)
    return cell + (cut - float(upto[cell] - counts[cell])) / float(counts[cell])


def _divergence(centers: Vector, counts: Vector, low: float, high: float) -> float:
    first, last = np.searchsorted(centers, low, "left"), np.searchsorted(centers, high, "right")
    if first >= last:
        return float("inf")
    kept = counts[first:last]
    reference = kept.copy()
    reference[0] += counts[:first].sum()
    reference[-1] += counts[last:].sum()
    scale = (high - low) / _LEVELS
    levels = np.rint((centers[first:last] - low) / scale).astype(np.intp)
    spread = (np.bincount(levels, kept) / np.maximum(np.bincount(levels), 1))[levels]
    p, q = reference / reference.sum(), spread / kept.sum()
    return float((p * np.log(p / q)).sum())


def _occupied(histogram: Histogram) -> tuple[Vector, Vector]:
    """Middles and counts of the cells that hold values; no middle beyond the values themselves.

    The bound matters for a clipped tensor: all its values at 6.0 lie on the left edge of their cell.
    """
    cells = np.flatnonzero(histogram.counts)
    centers = np.clip(histogram.centers()[cells], histogram.low, histogram.high)
    return centers, histogram.counts[cells].astype(np.float64)


def _search(low: float, high: float, cost: _Cost) -> tuple[float, float]:
    """The cheapest range inside (low, high): both ends together first, then each in turn, ever finer."""
    if low == high:
        return low, high
    ratios = np.geomspace(1.0, 1.0 / 64.0, 48)
    best = float(ratios[np.argmin(cost(ratios * low, ratios * high))])
    lo, hi = best * low, best * high
    for reach in (2.0, 1.25, 1.05):
        steps = np.geomspace(1.0 / reach, reach, 15)
        if high > 0.0:
            candidates = np.minimum(np.append(hi * steps, hi), high)
            hi = float(candidates[np.argmin(cost(np.full(len(candidates), lo), candidates))])
        if low < 0.0:
            candidates = np.maximum(np.append(lo * steps, lo), low)
            lo = float(candidates[np.argmin(cost(candidates, np.full(len(candidates), hi)))])
    return lo, hi
