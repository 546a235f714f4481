"""The solver: one choice an operator, the least of one metric under limits on others, proven with HiGHS.

It knows arrays only; what an operator or a precision is stays with the caller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, sparse

from tvm_mpq.search.problem import Choices, Floats, Problem
from tvm_mpq.search.program import Program, build_program
from tvm_mpq.search.silence import silent_stdout

CHANGES = "changes"
"""The metric that :func:`near` adds: in how many operators a solution differs from the current point."""

# A total may exceed its limit by rounding of a sum, relative to the limit and the metric's span.
_ROUNDING = 1e-9
# HiGHS's tolerances are absolute, 1e-6: metrics are scaled to make that small, relative to what they span.
_SPAN = 1e4


@dataclass(frozen=True)
class Solution:
    """``choices`` int64 [N] and their ``totals`` by metric, recomputed from the problem.

    ``binding`` is empty where every limit holds. Otherwise no choices meet the limits named there together (leave out
    any one of them and some do), and ``choices`` exceed the limits as little as is possible: the sum of the excesses,
    each relative to its metric's span, is least. ``gap`` is the proven distance to the optimum, relative to how far the
    optimum is from the metric's least conceivable total.
    """

    choices: Choices
    totals: dict[str, float]
    binding: tuple[str, ...]
    gap: float

    @property
    def feasible(self) -> bool:
        """Whether every limit holds."""
        return not self.binding


def near(problem: Problem, current: Choices) -> Problem:
    """``problem`` with the metric ``changes``, so that a limit on it is a trust region around ``current`` int64 [N]."""
    changes = np.ones(problem.allowed.shape)
    changes[np.arange(len(current)), current] = 0.0
    return replace(problem, costs={**problem.costs, CHANGES: changes})


def solve(
    problem: Problem,
    minimize: str,
    limits: Mapping[str, float],
    *,
    gap: float = 1e-6,
    time_limit: float | None = None,
) -> Solution:
    """The choices of least total ``minimize`` whose other totals are at most ``limits``.

    Deterministic unless ``time_limit`` (seconds, for each of the programs solved) ends the proof early: then the best
    choices found are returned with the gap reached, and TimeoutError is raised where none were found. Raises ValueError
    for an unknown metric and a limit that is NaN.
    """
    for metric in (minimize, *limits):
        if metric not in problem.costs:
            raise ValueError(f"there is no metric {metric!r}: there are {', '.join(problem.costs)}")
    if any(math.isnan(value) for value in limits.values()):
        raise ValueError("a limit is NaN")
    finite = {metric: value for metric, value in limits.items() if value != math.inf}
    search = _Search(
        problem, build_program(problem, list(dict.fromkeys([minimize, *finite]))), gap, time_limit
    )
    found = search.minimize(minimize, finite)
    if found is not None:
        return Solution(found[0], problem.totals(found[0]), (), found[1])
    binding = search.conflict(finite)
    closest = search.closest(finite)
    totals = problem.totals(closest)
    # Just above its totals, so that the program's tolerances cannot lose that point.
    relaxed = {m: max(value, totals[m] + 1e-8 * problem.span(m)) for m, value in finite.items()}
    better = search.minimize(minimize, relaxed)
    choices, reached = (closest, math.inf) if better is None else better
    return Solution(choices, problem.totals(choices), binding, reached)


@dataclass(frozen=True)
class _Search:
    problem: Problem
    program: Program
    gap: float
    time_limit: float | None

    def minimize(self, metric: str, limits: Mapping[str, float]) -> tuple[Choices, float] | None:
        """The best choices and their gap, or None where there are none."""
        objective = self.program.rows[metric]
        objective = objective * (_SPAN / (self.problem.span(metric) or 1.0))
        right = dict(limits)
        for _ in range(20):
            found = self._run(self._above_least(objective), right)
            if found is None:
                return None
            choices = self.program.choices(found[0])
            totals = self.problem.totals(choices)
            excess = {m: totals[m] - value for m, value in limits.items()}
            over = {m: e for m, e in excess.items() if e > _ROUNDING * self._scale(m, limits[m])}
            if not over:
                return choices, found[1]
            # HiGHS took the row as met within its tolerance, which is wider than ours.
            for name, value in over.items():
                right[name] -= value
        return None

    def conflict(self, limits: Mapping[str, float]) -> tuple[str, ...]:
        """Limits that cannot be met together, none of which is idle: a deletion filter (Chinneck & Dravnieks 1991)."""
        needed = dict(limits)
        for metric in limits:
            without = {name: value for name, value in needed.items() if name != metric}
            # Any objective would do: what counts is whether there is a solution.
            if self.minimize(metric, without) is None:
                needed = without
        return tuple(needed)

    def closest(self, limits: Mapping[str, float]) -> Choices:
        """The choices with the least sum of excesses over ``limits``, each relative to the metric's span."""
        n, m = self.program.variables, len(limits)
        objective = np.concatenate([np.zeros(n), np.ones(m)])
        found = self._run(objective, limits, slack=True)
        assert found is not None  # with slack on every limit there is always a solution
        return self.program.choices(found[0])

    def _scale(self, metric: str, limit: float) -> float:
        return max(abs(limit), self.problem.span(metric)) or 1.0

    def _above_least(self, objective: Floats) -> Floats:
        """``objective`` less each operator's least value: a total near zero would make a relative gap meaningless."""
        x = len(self.program.operator)
        least = np.full(int(self.program.operator[-1]) + 1, np.inf)
        np.minimum.at(least, self.program.operator, objective[:x])
        return np.concatenate([objective[:x] - least[self.program.operator], objective[x:]])

    def _run(
        self, objective: Floats, limits: Mapping[str, float], slack: bool = False
    ) -> tuple[Floats, float] | None:
        program, n, x = self.program, self.program.variables, len(self.program.operator)
        extra = len(limits) if slack else 0
        constraints = [
            optimize.LinearConstraint(_widened(program.equalities, extra), program.right, program.right)
        ]
        for index, (metric, limit) in enumerate(limits.items()):
            scale = (self.problem.span(metric) or 1.0) / _SPAN
            row = np.zeros(n + extra)
            row[:n] = program.rows[metric] / scale
            if slack:
                row[n + index] = -1.0
            constraints.append(optimize.LinearConstraint(row[None], -np.inf, limit / scale))
        upper = np.concatenate([np.ones(n), np.full(extra, np.inf)])
        options: dict[str, float] = {"mip_rel_gap": self.gap}
        if self.time_limit is not None:
            options["time_limit"] = self.time_limit
        with silent_stdout():
            result = optimize.milp(
                objective,
                integrality=np.concatenate([np.ones(x), np.zeros(n + extra - x)]),
                bounds=optimize.Bounds(np.zeros(n + extra), upper),
                constraints=constraints,
                options=options,
            )
        if result.status == 2:
            return None
        if result.x is None:
            if result.status == 1:
                raise TimeoutError(f"no choices were found in {self.time_limit} seconds")
            raise RuntimeError(f"HiGHS gave up: {result.message}")
        return result.x, max(float(result.mip_gap), 0.0)


def _widened(matrix: sparse.csr_array, extra: int) -> sparse.csr_array:
    empty = sparse.csr_array((matrix.shape[0], extra))
    return sparse.csr_array(sparse.hstack([matrix, empty])) if extra else matrix
