"""The step of one operator's weights that the loss asks for: where rounding led by the loss aims.

The loss changes by ⟨G, δ⟩ + ½ Σ_r c_r δ_r C δ_rᵀ with G = E Σ g (x − μ)ᵀ the gradient by the weights (the bias takes up
the inputs' mean μ), C the damped covariance of the inputs and c_r = E Σ g_r²: the Kronecker factors of K-FAC (Martens &
Grosse, arXiv 1503.05671), the second one diagonal. Codes that minimise this sum are those nearest, in that metric, to
W + δ* with δ* = −G (c ⊗ C)⁻¹.

G is an average over samples, and most of it is their noise. Two halves of them tell how much: the part of its squared
length in that metric that they agree on is what the step keeps (as James & Stein 1961 shrink a mean).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tvm_mpq.quantization.covariance import InputStatistics
from tvm_mpq.quantization.gptq import damped

Floats = npt.NDArray[np.float64]

_DAMPING = 0.03
_LEAST_CURVATURE = 0.1


@dataclass(frozen=True)
class LossStep:
    """What to add to the weights [groups, O/groups, K] and to the bias [O]; ``shared`` is the part that was kept."""

    weights: Floats
    bias: Floats
    shared: float


def loss_step(products: Floats, sums: Floats, squares: Floats, statistics: InputStatistics) -> LossStep:
    """The step by the gradients of two halves of the samples: E Σ g xᵀ [2, groups, O/groups, K] and E Σ g [2, O].

    ``squares`` [O] is E Σ g² of both. ``statistics`` are of the operator's inputs.
    """
    mean = statistics.mean
    covariance = damped(statistics.second - mean[:, :, None] * mean[:, None, :], _DAMPING)
    curvature = (squares + _LEAST_CURVATURE * squares.mean() + 1e-30).reshape(len(mean), -1, 1)
    halves = products - sums.reshape(2, len(mean), -1, 1) * mean[None, :, None, :]
    solved = np.linalg.solve(covariance, halves.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2) / curvature
    length = float((halves.mean(axis=0) * solved.mean(axis=0)).sum())
    shared = max(0.0, float((halves[0] * solved[1]).sum()) / length) if length > 0.0 else 0.0
    step = -shared * solved.mean(axis=0)
    return LossStep(step, -(step * mean[:, None, :]).sum(axis=2).reshape(-1), shared)
