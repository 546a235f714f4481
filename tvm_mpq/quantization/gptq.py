"""Second-order rounding: codes whose error hurts the operator's output least, given the second moments of its inputs.

With δ = Ŵ − W and H = E[x xᵀ] the mean squared error of the output is Σ_rows δ H δᵀ. GPTQ (Frantar et al. 2023)
rounds one column after another and pushes each column's error onto the columns that are still free: with H⁻¹ = Uᵀ U,
U upper triangular, w_j … −= (w_j − q_j) / U_jj · U_j…. :func:`descend` then visits every code again and gives it the
best value with all others fixed, which lowers the same error until nothing moves.

Rows of one group of a convolution share H: arrays are [groups, rows, K], H is [groups, K, K].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_BLOCK = 64


def damped(second: Floats, damping: float) -> Floats:
    """``second`` [groups, K, K] with ``damping`` times its mean diagonal added, so that it can be inverted.

    Inputs that were always zero get a diagonal of one: their weights are free, and rounding them to nearest is as good.
    """
    diagonal = np.diagonal(second, axis1=1, axis2=2)
    extra = damping * diagonal.mean(axis=1, keepdims=True) + (diagonal <= 0.0)
    k = second.shape[1]
    result = second.copy()
    result[:, np.arange(k), np.arange(k)] += extra
    return result


def gptq(target: Floats, step: Floats, limit: int, second: Floats) -> Floats:
    """Whole codes float64 [groups, rows, K] in ±``limit`` for ``target`` ≈ codes · ``step``, both of that shape.

    ``second`` [groups, K, K] is positive definite (:func:`damped`). Columns with the largest diagonal go first, while
    there are many others to take their error. Raises numpy.linalg.LinAlgError where ``second`` is not so.
    """
    order = np.argsort(-np.diagonal(second, axis1=1, axis2=2), axis=1, kind="stable")
    back = np.argsort(order, axis=1)
    ordered = np.take_along_axis(np.take_along_axis(second, order[:, :, None], 1), order[:, None, :], 2)
    factor = np.linalg.cholesky(np.linalg.inv(ordered)).transpose(0, 2, 1)
    rest = np.take_along_axis(target, order[:, None, :], 2)
    steps = np.take_along_axis(step, order[:, None, :], 2)
    codes = np.empty_like(rest)
    k = rest.shape[2]
    for start in range(0, k, _BLOCK):
        end = min(start + _BLOCK, k)
        errors = np.empty((*rest.shape[:2], end - start))
        for j in range(start, end):
            value = rest[:, :, j]
            codes[:, :, j] = np.clip(np.rint(value / steps[:, :, j]), -limit, limit)
            error = (value - codes[:, :, j] * steps[:, :, j]) / factor[:, None, j, j]
            errors[:, :, j - start] = error
            rest[:, :, j:end] -= error[:, :, None] * factor[:, None, j, j:end]
        rest[:, :, end:] -= errors @ factor[:, start:end, end:]
    return np.take_along_axis(codes, back[:, None, :], 2)


def descend(codes: Floats, target: Floats, step: Floats, limit: int, second: Floats, passes: int) -> Floats:
    """``codes`` [groups, rows, K] after ``passes`` rounds of giving each one its best value with all others fixed.

    Arguments as in :func:`gptq`. The error never grows.
    """
    codes = codes.copy()
    diagonal = np.diagonal(second, axis1=1, axis2=2)
    k = codes.shape[2]
    slope = (codes * step - target) @ second
    for _ in range(passes):
        moved = False
        for start in range(0, k, _BLOCK):
            end = min(start + _BLOCK, k)
            before = codes[:, :, start:end].copy()
            local = slope[:, :, start:end].copy()
            for j in range(start, end):
                value = codes[:, :, j] - local[:, :, j - start] / (diagonal[:, None, j] * step[:, :, j])
                better = np.clip(np.rint(value), -limit, limit)
                change = (better - codes[:, :, j]) * step[:, :, j]
                codes[:, :, j] = better
                local += change[:, :, None] * second[:, None, j, start:end]
            change = (codes[:, :, start:end] - before) * step[:, :, start:end]
            if change.any():
                moved = True
                slope += change @ second[:, start:end]
        if not moved:
            break
    return codes


def output_error(codes: Floats, target: Floats, step: Floats, second: Floats) -> Floats:
    """δ H δᵀ of each row, float64 [groups, rows]."""
    delta = codes * step - target
    return np.asarray(np.einsum("grk,grk->gr", delta @ second, delta), np.float64)
