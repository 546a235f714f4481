"""The front of storage and loss."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from tvm_mpq.precision import Precision
from tvm_mpq.search.goal import LATENCY, LOSS, STORAGE
from tvm_mpq.search.pareto import front_choices
from tvm_mpq.search.preparation import Prepared
from tvm_mpq.search.problem import Problem

PRECISIONS = tuple(map(Precision.parse, ("w8a8", "w4a8")))


def test_all_points_meet_the_limit_on_latency() -> None:
    """Four bits of everything are too slow: the front begins with the fewest bytes that are not."""
    operators, points = 12, 6
    bytes_ = np.random.default_rng(0).integers(1000, 9000, operators) * np.array([[2.0], [1.0]])
    costs = {
        STORAGE: bytes_.T,
        LATENCY: np.array([[1.0, 1.5]] * operators),
        LOSS: np.zeros((operators, 2)),
    }
    problem = Problem(costs, np.ones((operators, 2), bool))
    space = SimpleNamespace(
        allowed=problem.allowed,
        precisions=PRECISIONS,
        uniform=lambda precision: np.full(operators, PRECISIONS.index(precision)),
    )
    prepared = cast(Prepared, SimpleNamespace(problem=problem, space=space))
    loss = np.array([[0.0, 1.0]]) * np.arange(1, operators + 1)[:, None]
    limit: dict[str, float] = {LATENCY: 1.25 * operators}
    named: dict[str, Any] = dict(front_choices(prepared, loss, loss, limit, points))
    front = [problem.totals(named[f"front {number}"]) for number in range(1, points + 1)]
    assert all(total[LATENCY] <= limit[LATENCY] for total in front)
    assert front[0][STORAGE] < front[-1][STORAGE] == 2 * bytes_[1].sum()
    slow = problem.totals(named["uniform w4a8"])
    assert slow[LATENCY] > limit[LATENCY]
    assert slow[STORAGE] < front[0][STORAGE]
