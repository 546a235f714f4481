"""The Pareto front of storage and loss, under the limit on latency; and what it is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from tvm_mpq.precision import FP32
from tvm_mpq.search.front import sweep
from tvm_mpq.search.goal import LATENCY, LOSS, STORAGE
from tvm_mpq.search.preparation import Prepared
from tvm_mpq.search.problem import Choices, Floats
from tvm_mpq.search.solver import solve

_SIGNED, _UNSIGNED = "front", "squared gradients"


def front_choices(
    prepared: Prepared, loss: Floats, unsigned: Floats, limits: Mapping[str, float], points: int
) -> Iterator[tuple[str, Choices]]:
    """Named choices: the front for ``points`` limits on storage, a baseline at the same limits, uniform precisions.

    ``loss`` [N, P] is what the search believes of the loss; ``unsigned`` the second-order estimates alone, half the
    squared product of gradient and noise: what rankings by a Hessian or by squared gradients go by. The limits are from
    the fewest bytes that meet the limit on latency to those of uniform 8 bits.
    """
    problem, allowed = prepared.problem, prepared.space.allowed
    fixed = {LATENCY: limits[LATENCY]} if LATENCY in limits else {}
    least = solve(problem, STORAGE, fixed).totals[STORAGE]
    most = max(problem.totals(choices)[STORAGE] for _, choices in _uniform(prepared))
    values = np.linspace(least, most, points).tolist()
    for name, costs in ((_SIGNED, loss), (_UNSIGNED, unsigned)):
        full = replace(problem, costs={**problem.costs, LOSS: np.where(allowed, costs, 0.0)})
        for number, solution in enumerate(sweep(full, LOSS, STORAGE, values, fixed), 1):
            yield f"{name} {number}", solution.choices
    yield from _uniform(prepared)


def _uniform(prepared: Prepared) -> Iterator[tuple[str, Choices]]:
    for precision in prepared.space.precisions:
        if precision != FP32:
            yield f"uniform {precision}", prepared.space.uniform(precision)
