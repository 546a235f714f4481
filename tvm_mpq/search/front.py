"""Pareto fronts: solve under a sequence of limits, keep what nothing beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tvm_mpq.search.problem import Floats, Problem
from tvm_mpq.search.solver import Solution, solve


def sweep(
    problem: Problem,
    minimize: str,
    limit: str,
    values: Sequence[float],
    limits: Mapping[str, float] | None = None,
) -> list[Solution]:
    """The least ``minimize`` for each of ``values`` as the limit on ``limit``, under fixed other ``limits``.

    What cannot be met is left out, equal choices are given once, and what is dominated in the metrics ``minimize``,
    ``limit`` and ``limits`` is dropped. In the order of ``values``.
    """
    fixed = dict(limits or {})
    found: dict[bytes, Solution] = {}
    for value in values:
        solution = solve(problem, minimize, {**fixed, limit: value})
        if solution.feasible:
            found.setdefault(solution.choices.tobytes(), solution)
    solutions = list(found.values())
    metrics = list(dict.fromkeys([minimize, limit, *fixed]))
    table = np.array([[s.totals[m] for m in metrics] for s in solutions]).reshape(-1, len(metrics))
    return [solutions[i] for i in undominated(table)]


def undominated(points: Floats) -> list[int]:
    """The rows of ``points`` float64 [n, metrics], less being better, that no other row beats or equals everywhere.

    Of equal rows the first stays. Ascending.
    """
    kept = []
    for i, point in enumerate(points):
        nowhere_worse = (points <= point).all(axis=1)
        somewhere_better = (points < point).any(axis=1)
        earlier = np.arange(len(points)) < i
        if not (nowhere_worse & (somewhere_better | earlier)).any():
            kept.append(i)
    return kept
