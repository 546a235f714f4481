"""Products of many pairs of matrices, neither of them a weight: attention scores and their application, in float32.

A task computes a tile of rows of one pair's result; a tile of ``rows × vectors`` is in registers through the whole
reduction. The last tile of either axis begins early enough to be whole: what it shares with the one before is
computed twice, to the same value.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import PrimFunc

from tvm_mpq.kernels.emitting import argument, program, scratch, store

_ROWS = 6
_VECTORS = 2
_PARALLEL_MACS = 65536


def batched_matmul(batch: int, rows: int, depth: int, columns: int, lanes: int) -> PrimFunc:
    """a [batch, rows, depth] · b [batch, depth, columns] → out [batch, rows, columns]; ``lanes`` fill a vector."""
    tall = min(_ROWS, rows)
    wide = min(columns, lanes)
    vectors = _VECTORS if columns >= _VECTORS * wide else 1
    tiles, panels = -(-rows // tall), -(-columns // (vectors * wide))
    with program() as builder:
        a = argument("a", (batch, rows, depth), "float32")
        b = argument("b", (batch, depth, columns), "float32")
        out = argument("out", (batch, rows, columns), "float32")
        large = batch * rows * depth * columns >= _PARALLEL_MACS and batch * tiles > 1
        with T.sblock("root"), (T.parallel if large else T.serial)(0, batch * tiles) as task:
            n = T.bind(task // tiles)
            first = T.bind(T.min(task % tiles * tall, rows - tall))
            with T.serial(0, panels) as panel:
                column = T.bind(T.min(panel * (vectors * wide), columns - vectors * wide))
                acc = scratch(tall * vectors * wide, "float32")
                places = [
                    (i, v, T.ramp((i * vectors + v) * wide, 1, wide) if wide > 1 else i * vectors + v)
                    for i in range(tall)
                    for v in range(vectors)
                ]
                zero = T.broadcast(T.float32(0.0), wide) if wide > 1 else T.float32(0.0)
                for _, _, place in places:
                    store(acc, [place], zero)
                with T.serial(0, depth) as k:
                    right = [T.bind(b[n, k, _span(column + v * wide, wide)]) for v in range(vectors)]
                    for i in range(tall):
                        left = T.bind(a[n, first + i, k])
                        spread = T.broadcast(left, wide) if wide > 1 else left
                        for v in range(vectors):
                            place = places[i * vectors + v][2]
                            store(acc, [place], acc[place] + spread * right[v])
                for i, v, place in places:
                    store(out, [n, first + i, _span(column + v * wide, wide)], acc[place])
    return builder.get()


def _span(start: T.Expr, width: int) -> T.Expr:
    return T.ramp(start, 1, width) if width > 1 else start
