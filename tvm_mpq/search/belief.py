"""What is believed of the loss of every choice: a prior from the sensitivities, sharpened by measured plans.

The change of the loss under a plan is taken as a sum c·a over operators and choices, a being one where the plan has
that choice. Before anything is measured c ~ N(μ, D + τ² v vᵀ): μ the estimates, D their squared errors, and v their
second-order parts, whose common factor nobody knows (they leave out how the errors of operators meet). A measured plan
says a·c = y ± σ. All of it is Gaussian, so that the mean after K plans is (Rasmussen & Williams 2006, §2.1)

    μ + P Aᵀ (A P Aᵀ + diag σ²)⁻¹ (y − A μ),    P = D + τ² v vᵀ,

and a draw is a draw from the prior, moved the same way (Matheron's rule). Only K × K matrices are ever factored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from tvm_mpq.search.problem import Choices, Floats

_UNKNOWN_FACTOR = 0.5
"""τ: all second-order parts together may be half as large or half as large again."""
_OWN_FACTOR = 0.5
"""So may each of them alone."""


@dataclass
class Belief:
    """``mean``, ``error`` and ``second_order`` float64 [N, P]: the estimate of each choice, its standard error, and how
    much of it is second-order. ``error`` is that of the first-order part; that of the second is added here.
    """

    mean: Floats
    error: Floats
    second_order: Floats
    _rows: list[Floats] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)
    _noise: list[float] = field(default_factory=list)

    def measure(self, choices: Choices, change: float, error: float) -> None:
        """Learn that ``choices`` int64 [N] change the loss by ``change`` ± ``error``, unless that is infinite."""
        if error == math.inf:
            return
        row = np.zeros(self.mean.shape)
        row[np.arange(len(choices)), choices] = 1.0
        self._rows.append(row.reshape(-1))
        self._values.append(change)
        self._noise.append(error)

    def costs(self) -> Floats:
        """The mean of the belief, float64 [N, P]."""
        return self._moved(self.mean.reshape(-1), np.zeros(len(self._rows)))

    def draw(self, rng: np.random.Generator) -> Floats:
        """One draw from the belief, float64 [N, P]."""
        own = rng.standard_normal(self.mean.size) * np.sqrt(self._variance())
        common = _UNKNOWN_FACTOR * rng.standard_normal() * self.second_order.reshape(-1)
        noise = rng.standard_normal(len(self._rows)) * np.asarray(self._noise)
        return self._moved(self.mean.reshape(-1) + own + common, noise)

    def _variance(self) -> Floats:
        return (self.error**2 + (_OWN_FACTOR * self.second_order) ** 2).reshape(-1)

    def _moved(self, point: Floats, noise: Floats) -> Floats:
        """``point`` [N·P] moved by what was measured, as [N, P]."""
        if self._rows:
            a = np.stack(self._rows)
            v = self.second_order.reshape(-1)
            spread = self._variance()[:, None] * a.T + _UNKNOWN_FACTOR**2 * np.outer(v, a @ v)
            seen = a @ spread
            seen[np.diag_indices(len(seen))] += np.asarray(self._noise) ** 2 + 1e-12
            point = point + spread @ np.linalg.solve(seen, np.asarray(self._values) + noise - a @ point)
        return point.reshape(self.mean.shape)
