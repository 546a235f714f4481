"""Softmax and layer norm of the rows of a matrix, in float32: a warp makes a row, its sums meet in shared memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.cuda.block_program import shared
from tvm_mpq.kernels.cuda.tile import WARP
from tvm_mpq.kernels.emitting import When, argument, program, store
from tvm_mpq.kernels.rows import LOWEST, Combine

_ROWS = 4
"""Rows of a thread block."""


def softmax(rows: int, length: int) -> PrimFunc:
    """e^(x − max) / Σ e^(x − max) of each row: x [rows, length], out."""
    with program() as builder:
        x, out = (argument(name, (rows, length), "float32") for name in ("x", "out"))
        with T.sblock("root"), _each_row(rows, length) as row:
            most = row.reduced(LOWEST, T.max, lambda k: x[row.place, k])

            def power(k: Expr) -> Expr:
                return T.exp(x[row.place, k] - most)

            factor = T.bind(T.float32(1.0) / row.reduced(0.0, lambda a, b: a + b, power))
            row.along(lambda k: store(out, [row.place, k], power(k) * factor))
    return builder.get()


def layer_norm(rows: int, length: int, epsilon: float) -> PrimFunc:
    """(x − mean) / √(variance + ε) · gamma + beta of each row: x [rows, length], gamma [length], beta [length], out."""
    with program() as builder:
        x = argument("x", (rows, length), "float32")
        gamma, beta = (argument(name, (length,), "float32") for name in ("gamma", "beta"))
        out = argument("out", (rows, length), "float32")
        share = T.float32(1.0 / length)
        with T.sblock("root"), _each_row(rows, length) as row:
            at = row.place
            mean = T.bind(row.reduced(0.0, lambda a, b: a + b, lambda k: x[at, k]) * share)
            variance = row.reduced(0.0, lambda a, b: a + b, lambda k: (x[at, k] - mean) * (x[at, k] - mean))
            factor = T.bind(T.float32(1.0) / T.sqrt(variance * share + T.float32(epsilon)))
            row.along(lambda k: store(out, [at, k], (x[at, k] - mean) * factor * gamma[k] + beta[k]))
    return builder.get()


class _Row:
    """The row of a warp; past the last row of all it is that row again, whose results are not stored."""

    def __init__(self, rows: int, length: int, block: Expr, thread: Expr) -> None:
        self.length = length
        self.lane, self.warp = thread % WARP, thread // WARP
        wanted = block * _ROWS + self.warp
        self.ragged = rows % _ROWS != 0
        self.inside = wanted < rows
        self.place = T.bind(T.min(wanted, rows - 1)) if self.ragged else T.bind(wanted)

    def reduced(self, start: float, combine: Combine, value: Callable[[Expr], Expr]) -> Expr:
        """``value`` of every place of the row, combined, in all threads of the warp."""
        part = _register(start)
        with self._places() as k:
            store(part, [0], combine(part[0], value(k)))
        parts = shared(_ROWS * WARP, "float32")
        store(parts, [self.warp * WARP + self.lane], part[0])
        total = _register(start)
        with T.serial(0, WARP) as other:
            store(total, [0], combine(total[0], parts[self.warp * WARP + other]))
        return T.bind(total[0])

    def along(self, body: Callable[[Expr], None]) -> None:
        """``body`` of every place of the row."""
        with self._places() as k, When([self.inside] if self.ragged else []):
            body(k)

    @contextmanager
    def _places(self) -> Iterator[Expr]:
        with T.serial(0, -(-self.length // WARP)) as turn:
            k = T.bind(turn * WARP + self.lane)
            with When([] if self.length % WARP == 0 else [k < self.length]):
                yield k


@contextmanager
def _each_row(rows: int, length: int) -> Iterator[_Row]:
    T.reads()
    T.writes()
    block = T.launch_thread("blockIdx.x", -(-rows // _ROWS))
    thread = T.launch_thread("threadIdx.x", _ROWS * WARP)
    with block as b, thread as t:
        yield _Row(rows, length, b, t)


def _register(start: float) -> Buffer:
    buffer = T.alloc_buffer((1,), "float32", scope="local", layout=None)
    store(buffer, [0], T.float32(start))
    return buffer
