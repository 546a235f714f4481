"""The step of one operator's weights and bias that the loss asks for: where rounding led by the loss aims.

The loss changes by ⟨G, δ⟩ + ½ Σ_r c_r δ_r C δ_rᵀ with G = E Σ g (x − μ)ᵀ the gradient by the weights (the bias takes up
the inputs' mean μ), C the damped covariance of the inputs and c_r = E Σ g_r² + E (Σ g_r)², sums over positions, whether
or not errors of a sample's positions add up: Kronecker factors as K-FAC has (Martens & Grosse, arXiv 1503.05671; for
sums of positions Eschenhagen et al., arXiv 2311.00636), the second one diagonal. Codes that minimise this are those
nearest, in that metric, to W + δ* with δ* = −G (c ⊗ C)⁻¹. The bias's own step is −E Σ g_r / c_r.

G is an average over samples, and most of it is their noise. Two halves of them tell how much: the part of its squared
length in that metric that they agree on is what a step keeps (as James & Stein 1961 shrink a mean).
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
    """What to add to the weights [groups, O/groups, K] and to the bias [O].

    ``shared`` are the parts that were kept, of the weights' step and of the bias's own.
    """

    weights: Floats
    bias: Floats
    shared: tuple[float, float]

    def times(self, part: float) -> LossStep:
        """``part`` of the step."""
        return LossStep(part * self.weights, part * self.bias, self.shared)


def loss_step(products: Floats, sums: Floats, squares: Floats, statistics: InputStatistics) -> LossStep:
    """The step by the gradients of two halves of the samples: E Σ g xᵀ [2, groups, O/groups, K] and E Σ g [2, O].

    ``squares`` [2, O] are E Σ g² and E (Σ g)² of both. ``statistics`` are of the operator's inputs.
    """
    mean = statistics.mean
    covariance = damped(statistics.second - mean[:, :, None] * mean[:, None, :], _DAMPING)
    both = squares.sum(axis=0)
    curvature = both + _LEAST_CURVATURE * both.mean() + 1e-30
    halves = products - sums.reshape(2, len(mean), -1, 1) * mean[None, :, None, :]
    solved = np.linalg.solve(covariance, halves.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
    solved /= curvature.reshape(len(mean), -1, 1)
    of_bias = sums / curvature
    shared = (_shared(halves, solved), _shared(sums, of_bias))
    step = -shared[0] * solved.mean(axis=0)
    taken_up = -(step * mean[:, None, :]).sum(axis=2).reshape(-1)
    return LossStep(step, taken_up - shared[1] * of_bias.mean(axis=0), shared)


def _shared(halves: Floats, solved: Floats) -> float:
    """The part of the squared length of two halves' mean that they agree on, 0 to 1."""
    length = float((halves.mean(axis=0) * solved.mean(axis=0)).sum())
    return min(1.0, max(0.0, float((halves[0] * solved[1]).sum()) / length)) if length > 0.0 else 0.0
