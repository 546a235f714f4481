"""A scale for each output channel and a small integer multiplier for each group, of least squared error.

Multipliers are integers so that code · multiplier is an 8-bit code again: kernels of 8-bit weights then run grouped
weights exactly, and a kernel that multiplies group by group needs no float inside the reduction.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.groups import Grouping
from tvm_mpq.quantization.weights import (
    SMALLEST_SCALE,
    largest_code,
    largest_multiplier,
    least_squares,
    squared_error,
    weight_scales,
)

_CANDIDATES = 10
"""Channel scales tried: the coarsest group's best step is divided by as many numbers around the largest multiplier."""


def group_scales(
    rows: npt.NDArray[np.float32], grouping: Grouping, bits: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """Scale float32 [K] and multiplier uint8 [K, groups] for finite weights [K, R·S·C] in the reduction's order.

    Each group's own best step is found first. A channel scale s is the largest of them divided by a candidate; with it
    a group takes the best of the three integers around its step / s. The s of least error over the channel is kept.
    A channel without weights gets what :func:`weight_scales` gives it.
    """
    limit, top = largest_code(bits), largest_multiplier(bits)
    groups = grouping.split(rows)
    k, count, size = groups.shape
    flat = groups.reshape(k * count, size)
    step = np.abs(flat).max(axis=1, initial=0.0).astype(np.float64) / limit
    alive = step >= SMALLEST_SCALE
    step[alive] = least_squares(flat[alive], step[alive], limit)
    step = step.reshape(k, count)
    coarsest = step.max(axis=1)

    best = weight_scales(rows, bits).astype(np.float32)
    chosen = np.ones((k, count), np.uint8)
    live = np.flatnonzero(coarsest >= SMALLEST_SCALE)
    least = np.full(k, np.inf)
    for divisor in np.linspace(0.5 * top, 1.1 * top, _CANDIDATES):
        scale = (coarsest[live] / divisor).astype(np.float32)
        multiplier, error = _multipliers(groups[live], step[live], scale, limit, top)
        better = error < least[live]
        at = live[better]
        best[at], chosen[at], least[at] = scale[better], multiplier[better], error[better]
    return best, chosen


def _multipliers(
    groups: npt.NDArray[np.float32],
    step: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float32],
    limit: int,
    top: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """The best integer [K, groups] for each group at ``scale`` [K], and the squared error [K] with them."""
    k, count, size = groups.shape
    flat = groups.reshape(k * count, size)
    centre = np.rint(step / scale[:, None].astype(np.float64))
    chosen = np.ones((k, count), np.uint8)
    least = np.full((k, count), np.inf)
    for offset in (0, -1, 1):
        candidate = np.clip(centre + offset, 1, top)
        error = squared_error(flat, (candidate * scale[:, None]).reshape(-1), limit).reshape(k, count)
        better = error < least
        chosen[better], least[better] = candidate[better].astype(np.uint8), error[better]
    return chosen, least.sum(axis=1)
