"""How far a tensor is from another, and how much of that lies along a third: what the sensitivity analysis sums up."""

from __future__ import annotations

from tvm import te, tirx
from tvm.tirx import Expr, PrimFunc

_LANES = 32
_RUN = 256
"""Elements that a lane adds up before a partial sum goes to memory; rounding stays that of short sums."""


def partial_products(batch: int, elements: int) -> tuple[PrimFunc, tuple[int, int, int, int]]:
    """Partial sums of (a − b)·g and (a − b)² over the elements of each sample, and the shape that holds them.

    Parameters: a, b, g, each float32 [batch · elements], then out float32 [batch, tasks, 2, lanes].
    """
    lanes = _largest_divisor(elements, _LANES)
    run = _largest_divisor(elements // lanes, _RUN)
    tasks = elements // lanes // run
    a, b, g = (te.placeholder((batch * elements,), "float32", name) for name in ("a", "b", "g"))
    j = te.reduce_axis((0, run), "j")

    def term(n: Expr, task: Expr, which: Expr, lane: Expr) -> Expr:
        at = n * elements + (task * run + j) * lanes + lane
        difference = a[at] - b[at]
        return te.sum(difference * tirx.Select(which == 0, g[at], difference), axis=j)

    shape = (batch, tasks, 2, lanes)
    return te.create_prim_func([a, b, g, te.compute(shape, term, "partial")]), shape


def sum_partials(shape: tuple[int, int, int, int]) -> PrimFunc:
    """[batch, tasks, 2, lanes] → [batch, 2]: x, out."""
    batch, tasks, _, lanes = shape
    x = te.placeholder(shape, "float32", "x")
    task, lane = te.reduce_axis((0, tasks), "task"), te.reduce_axis((0, lanes), "lane")
    out = te.compute((batch, 2), lambda n, k: te.sum(x[n, task, k, lane], axis=[task, lane]), "out")
    return te.create_prim_func([x, out])


def _largest_divisor(number: int, limit: int) -> int:
    return next(d for d in range(min(limit, number), 0, -1) if number % d == 0)
