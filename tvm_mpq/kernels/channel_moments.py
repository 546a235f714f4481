"""Sums of a tensor's values and squares over all positions, for each sample and channel."""

from __future__ import annotations

from tvm import te, tirx
from tvm.tirx import Expr, PrimFunc

_RUN = 256
"""Positions that are added up before a partial sum goes to memory; rounding stays that of short sums."""


def partial_moments(batch: int, positions: int, channels: int) -> tuple[PrimFunc, tuple[int, int, int, int]]:
    """Partial sums over the positions of each sample, and the shape that holds them.

    Parameters: x float32 [batch · positions, channels], then out float32 [batch, tasks, 2, channels].
    """
    run = next(d for d in range(min(_RUN, positions), 0, -1) if positions % d == 0)
    x = te.placeholder((batch * positions, channels), "float32", "x")
    j = te.reduce_axis((0, run), "j")

    def term(n: Expr, task: Expr, which: Expr, c: Expr) -> Expr:
        value = x[n * positions + task * run + j, c]
        return te.sum(tirx.Select(which == 0, value, value * value), axis=j)

    shape = (batch, positions // run, 2, channels)
    return te.create_prim_func([x, te.compute(shape, term, "partial")]), shape


def sum_moments(shape: tuple[int, int, int, int]) -> PrimFunc:
    """[batch, tasks, 2, channels] → [batch, 2 · channels]: x, out."""
    batch, tasks, _, channels = shape
    x = te.placeholder(shape, "float32", "x")
    task = te.reduce_axis((0, tasks), "task")

    def term(n: Expr, c: Expr) -> Expr:
        return te.sum(x[n, task, tirx.indexdiv(c, channels), tirx.indexmod(c, channels)], axis=task)

    return te.create_prim_func([x, te.compute((batch, 2 * channels), term, "out")])
