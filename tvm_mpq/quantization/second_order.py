"""Weights of one operator to integers by the second moments of its inputs: scales, codes and bias together.

Four choices make up the error that is minimised:

- *Which moments.* A bias takes up any constant error of the output, so what counts is the covariance C = H − μ μᵀ of
  the inputs and not their second moment H; :func:`bias_change` is the bias that then belongs to the codes (after
  Nagel et al. 2019, §4.2).
- *Which target.* The quantized network hands the operator x where fp32 has x₀. The weights that give fp32's output
  from x best are W' = W E[x₀ xᵀ] E[x xᵀ]⁻¹ (least squares; as GPTAQ, Li et al. 2025, in closed form); covariances
  again.
- *Which scale.* Each row tries a range of scales around that of the least squared weight error through GPTQ, and keeps
  the one of least output error, from which coordinate descent goes on.
- *Which gain.* Codes of least error shrink the output, as every least-squares fit to something coarse does: the slope
  of the output on fp32's is below one. Over many layers that takes a classifier's confidence away, and with it more
  loss than the noise does. The scale is multiplied so that the slope is one: w C wᵀ / ŵ C wᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.covariance import InputStatistics
from tvm_mpq.quantization.gptq import damped, descend, gptq, output_error
from tvm_mpq.quantization.weights import QuantizedWeights, largest_code

Floats = npt.NDArray[np.float64]

_ENOUGH = 10.0
_GAINS = (0.8, 1.25)


@dataclass(frozen=True)
class SecondOrder:
    """How to round. ``damping`` is relative to the mean variance of the inputs, and grows where they were few.

    ``scales`` are the multiples of the given scale that each row tries; ``passes`` of coordinate descent follow.
    ``correct`` takes fp32's output as the target (W') and not that of the unquantized weights on the quantized input:
    only where the operators before are final, or each would make up for the same errors. ``centred`` leaves the mean
    error to the bias. ``keep_gain`` undoes the shrinking.
    """

    damping: float = 0.03
    scales: tuple[float, ...] = (0.8, 0.87, 0.93, 1.0, 1.07)
    passes: int = 3
    correct: bool = False
    centred: bool = True
    keep_gain: bool = True


def round_second_order(
    w: npt.NDArray[np.float32],
    grid: QuantizedWeights,
    statistics: InputStatistics,
    options: SecondOrder | None = None,
) -> QuantizedWeights:
    """Codes for ``w`` float32 [O, C/groups, R, S] on ``grid``'s bits and groups, with scales around ``grid``'s.

    ``statistics`` are of the operator's inputs, in the same order of elements.
    """
    chosen = options or SecondOrder()
    groups, k = statistics.mean.shape
    rows = w.reshape(groups, -1, k).astype(np.float64)
    moments = _moments(statistics, chosen.centred)
    second = _trusted(moments[0], statistics.count, chosen.damping)
    target = _corrected(rows, second, moments[0], moments[1]) if chosen.correct else rows
    step = (grid.scale.astype(np.float64)[:, None, None, None] * grid.element_multiplier).reshape(rows.shape)
    limit = largest_code(grid.bits)

    # Candidates are further rows of the same problem.
    count, m = len(chosen.scales), rows.shape[1]
    factors = np.repeat(np.asarray(chosen.scales, np.float64), m)[None, :, None]
    targets = np.tile(target, (1, count, 1))
    steps = np.tile(step, (1, count, 1)) * factors
    codes = gptq(targets, steps, limit, second)
    errors = output_error(codes, targets, steps, second).reshape(groups, count, m)
    best = errors.argmin(axis=1)
    picked = np.take_along_axis(codes.reshape(groups, count, m, k), best[:, None, :, None], 1)[:, 0]
    factor = np.asarray(chosen.scales)[best]
    scaled = step * factor[:, :, None]
    if chosen.passes:
        picked = descend(picked, target, scaled, limit, second, chosen.passes)
    scale = grid.scale.astype(np.float64) * factor.reshape(-1)
    if chosen.keep_gain:
        scale *= _gain(target, picked * scaled, second).reshape(-1)
    return replace(grid, codes=picked.reshape(w.shape).astype(np.int8), scale=scale.astype(np.float32))


def output_noise(
    w: npt.NDArray[np.float32],
    quantized: QuantizedWeights,
    statistics: InputStatistics,
    options: SecondOrder | None = None,
) -> Floats:
    """The mean squared error [O] of the output that rounding alone makes, with the moments that rounding trusted.

    Without the damping, weights that were fitted to few samples would look better than they are.
    """
    chosen = options or SecondOrder()
    groups, k = statistics.mean.shape
    delta = (quantized.real.astype(np.float64) - w).reshape(groups, -1, k)
    moments, _ = _moments(statistics, chosen.centred)
    second = _trusted(moments, statistics.count, chosen.damping)
    return np.asarray(np.einsum("grk,grk->gr", delta @ second, delta), np.float64).reshape(-1)


def bias_change(
    w: npt.NDArray[np.float32],
    quantized: QuantizedWeights,
    statistics: InputStatistics,
    correct: bool = False,
) -> npt.NDArray[np.float32]:
    """What to add to the bias [O] so that rounding leaves the mean of the output, before the activation, alone.

    With ``correct`` the mean becomes that of fp32, so that the mean error of the inputs is made up for as well: right
    where the operators before are final, too much where each of them makes up for its own.
    """
    groups, k = statistics.mean.shape
    meant, made = (a.reshape(groups, -1, k).astype(np.float64) for a in (w, quantized.real))
    wanted = statistics.reference_mean if correct else statistics.mean
    change = np.einsum("grk,gk->gr", meant, wanted) - np.einsum("grk,gk->gr", made, statistics.mean)
    return change.reshape(-1).astype(np.float32)


def _gain(target: Floats, made: Floats, second: Floats) -> Floats:
    """What ``made`` [groups, rows, K] must be multiplied by so that its slope on ``target`` is one, [groups, rows]."""
    onto = target @ second
    wanted, got = np.einsum("grk,grk->gr", onto, target), np.einsum("grk,grk->gr", onto, made)
    # A row that rounding left nothing of, or turned round, has no gain to keep.
    return np.clip(np.divide(wanted, got, out=np.ones_like(got), where=got > 0.0), *_GAINS)


def _trusted(moments: Floats, count: int, damping: float) -> Floats:
    """``moments`` with a damping that grows once there are fewer than _ENOUGH positions for each of K elements.

    A classifier behind a global pool sees one position a sample: of 1280 directions, 256 samples leave 1024 unseen,
    and codes that put all their error there do harm on other samples.
    """
    return damped(moments, damping * max(1.0, _ENOUGH * moments.shape[1] / count))


def _moments(statistics: InputStatistics, centred: bool) -> tuple[Floats, Floats]:
    if not centred:
        return statistics.second, statistics.cross
    mean, reference = statistics.mean, statistics.reference_mean
    return (
        statistics.second - mean[:, :, None] * mean[:, None, :],
        statistics.cross - reference[:, :, None] * mean[:, None, :],
    )


def _corrected(rows: Floats, second: Floats, moments: Floats, cross: Floats) -> Floats:
    """W (cross + λ) (H + λ)⁻¹ with the λ of ``second`` = H + λ: no correction where nothing is known."""
    right = np.matmul(rows, cross + (second - moments))
    return np.linalg.solve(second, right.transpose(0, 2, 1)).transpose(0, 2, 1)
