"""Softmax and layer norm of the rows of a matrix, in float32: written out, with vectors of partial results.

A row's reduction runs along the vector, so a sum is 16 sums and the tail that fills no vector, added up at its end.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.emitting import argument, program, scratch, store
from tvm_mpq.kernels.mathematics import exp

_LANES = 16
_PARALLEL_ELEMENTS = 16384
LOWEST = -3.4028234663852886e38
"""The least finite float32."""

Combine = Callable[[Expr, Expr], Expr]
"""Two partial results of a reduction made one."""


def softmax(rows: int, length: int) -> PrimFunc:
    """e^(x − max) / Σ e^(x − max) of each row: x [rows, length], out."""
    with program() as builder:
        x, out = (argument(name, (rows, length), "float32") for name in ("x", "out"))
        with T.sblock("root"), _each_row(rows, length) as row:
            most = _reduced(length, LOWEST, T.max, lambda k: x[row, k])

            def power(k: Expr) -> Expr:
                value = exp(x[row, k] - most[0])
                store(out, [row, k], value)
                return out[row, k]

            total = _reduced(length, 0.0, lambda a, b: a + b, power)
            factor = T.bind(T.float32(1.0) / total[0])
            _along(length, lambda k: store(out, [row, k], out[row, k] * factor))
    return builder.get()


def layer_norm(rows: int, length: int, epsilon: float) -> PrimFunc:
    """(x − mean) / √(variance + ε) · gamma + beta of each row: x [rows, length], gamma [length], beta [length], out."""
    with program() as builder:
        x = argument("x", (rows, length), "float32")
        gamma, beta = (argument(name, (length,), "float32") for name in ("gamma", "beta"))
        out = argument("out", (rows, length), "float32")
        share = T.float32(1.0 / length)
        with T.sblock("root"), _each_row(rows, length) as row:
            mean = T.bind(_sum(length, lambda k: x[row, k]) * share)
            variance = _sum(length, lambda k: (x[row, k] - mean) * (x[row, k] - mean)) * share
            factor = T.bind(T.float32(1.0) / T.sqrt(variance + T.float32(epsilon)))

            def scaled(k: Expr) -> None:
                store(out, [row, k], (x[row, k] - mean) * factor * gamma[k] + beta[k])

            _along(length, scaled)
    return builder.get()


def _each_row(rows: int, length: int) -> T.frame.ForFrame:
    return T.parallel(0, rows) if rows * length >= _PARALLEL_ELEMENTS and rows > 1 else T.serial(0, rows)


def _along(length: int, body: Callable[[Expr], None]) -> None:
    """``body`` of every place of the row: in vectors, then one by one."""
    whole = length // _LANES
    if whole:
        with T.serial(0, whole) as k, T.vectorized(0, _LANES) as lane:
            body(k * _LANES + lane)
    if length % _LANES:
        with T.serial(whole * _LANES, length) as k:
            body(k)


def _sum(length: int, value: Callable[[Expr], Expr]) -> Expr:
    return _reduced(length, 0.0, lambda a, b: a + b, value)[0]


def _reduced(length: int, start: float, combine: Combine, value: Callable[[Expr], Expr]) -> Buffer:
    """A buffer whose first element is ``value`` of every place of the row, combined."""
    whole = length // _LANES
    part, result = scratch(_LANES, "float32"), scratch(1, "float32")
    store(result, [0], T.float32(start))
    if whole:
        with T.vectorized(0, _LANES) as lane:
            store(part, [lane], T.float32(start))
        with T.serial(0, whole) as k, T.vectorized(0, _LANES) as lane:
            store(part, [lane], combine(part[lane], value(k * _LANES + lane)))
        for lane in range(_LANES):
            store(result, [0], combine(result[0], part[lane]))
    if length % _LANES:
        with T.serial(whole * _LANES, length) as k:
            store(result, [0], combine(result[0], value(k)))
    return result
