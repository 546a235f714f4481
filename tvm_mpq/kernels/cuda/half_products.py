"""Products of many pairs of matrices, neither of them a weight, on tensor cores: factors rounded to half floats.

A thread block makes a tile of one pair's result:

    for step in reduction / depth:                    (see ``stages``)
        shared a[rows, depth·16], b[depth·16, columns] = parts of both, rounded to float16; zero past their ends
        acc += a · b                                  (wmma: float32 sums)
    shared c = acc;  out = c

Rows, columns and the reduction are padded to whole fragments in shared memory, so that every shape runs here.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.cuda.block_program import shared, span, vector
from tvm_mpq.kernels.cuda.fragments import Operand, WarpProduct
from tvm_mpq.kernels.cuda.stages import MOST_UNROLLED, Each, Stage, run_stages
from tvm_mpq.kernels.cuda.tile import FRAGMENT, spread_tile
from tvm_mpq.kernels.cuda.units import with_work
from tvm_mpq.kernels.emit import When
from tvm_mpq.kernels.emitting import argument, program

_MOST_DEPTH = 4
_PAD = 8
"""Elements that keep rows of a factor in different banks of shared memory."""


def half_products(batch: int, rows: int, depth: int, columns: int) -> PrimFunc:
    """a [batch, rows, depth] · b [batch, depth, columns] → out [batch, rows, columns], float32."""
    return _HalfProducts(batch, rows, depth, columns).emit()


class _HalfProducts:
    def __init__(self, batch: int, rows: int, depth: int, columns: int) -> None:
        self.batch, self.extents = batch, (rows, depth, columns)
        self.tile = spread_tile(
            *(rows, columns, min(_MOST_DEPTH, -(-depth // FRAGMENT))),
            lambda m, n: batch * -(-rows // m) * -(-columns // n),
        )
        self.length = self.tile.depth * FRAGMENT
        self.steps = -(-depth // self.length)
        self.tiles = -(-rows // self.tile.rows), -(-columns // self.tile.columns)

    def emit(self) -> PrimFunc:
        """The function, with its work noted."""
        (rows, depth, columns), tile = self.extents, self.tile
        with program() as builder:
            a = argument("a", (self.batch, rows, depth), "float32")
            b = argument("b", (self.batch, depth, columns), "float32")
            out = argument("out", (self.batch, rows, columns), "float32")
            with T.sblock("root"):
                # TVM cannot tell what a matrix load reads; nothing is placed or moved around this block.
                T.reads()
                T.writes()
                block_m = T.launch_thread("blockIdx.x", self.batch * self.tiles[0])
                block_n = T.launch_thread("blockIdx.y", self.tiles[1])
                thread = T.launch_thread("threadIdx.x", tile.threads)
                with block_m as bm, block_n as bn, thread as t:
                    self.t, self.pair = t, bm // self.tiles[0]
                    row, column = bm % self.tiles[0] * tile.rows, bn * tile.columns
                    self._multiply(a, b, out, row, column)
        padded = self.tiles[0] * tile.rows * self.tiles[1] * tile.columns * self.steps * self.length
        return with_work(
            builder.get(), "hmma", self.batch * rows * depth * columns, float(self.batch * padded)
        )

    def _multiply(self, a: Buffer, b: Buffer, out: Buffer, row: Expr, column: Expr) -> None:
        """The tile of results that begins at ``row`` and ``column``."""
        tile, length = self.tile, self.length
        block = tile.threads, self.t, self.pair
        left = _Factor(a, (tile.rows, length), block, lambda step: (row, step * length))
        right = _Factor(b, (length, tile.columns), block, lambda step: (step * length, column))
        factors = (
            Operand(left.part, "row_major", left.stride, lambda i, k: i * left.stride + k * FRAGMENT),
            Operand(right.part, "row_major", right.stride, lambda j, k: k * FRAGMENT * right.stride + j),
        )
        c_stride = tile.columns + 4
        c = shared(tile.rows * c_stride, "float32")
        product = WarpProduct(tile, self.t, "float16", "float32")
        ahead = left.turns + right.turns <= MOST_UNROLLED
        run_stages([left, right], self.steps, ahead, lambda: product.add(*factors))
        product.store(c, c_stride)
        v = _vector(int(out.shape[2]))
        per_row = tile.columns // v
        with Each(tile.rows * per_row, tile.threads, self.t) as index:
            i, j = index // per_row, index % per_row * v
            with When([row + i < out.shape[1], column + j < out.shape[2]]):
                T.buffer_store(out, c[span(i * c_stride + j, v)], [self.pair, row + i, span(column + j, v)])


class _Factor(Stage):
    """A part of the pair's factor ``source``, that begins at ``first`` of the step; zero past the factor's ends."""

    def __init__(
        self,
        source: Buffer,
        extents: tuple[int, int],
        block: tuple[int, Expr, Expr],
        first: Callable[[Expr], tuple[Expr, Expr]],
    ) -> None:
        threads, thread, self.pair = block
        self.source, self.first = source, first
        self.v = _vector(int(source.shape[2]))
        self.per_row, self.stride = extents[1] // self.v, extents[1] + _PAD
        self.part = shared(extents[0] * self.stride, "float16")
        super().__init__(extents[0] * self.per_row, threads, thread, [("float32", self.v)])

    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """Neighbours of a row."""
        row, column = self.first(step)
        i, j = row + part // self.per_row, column + part % self.per_row * self.v
        inside = T.And(i < self.source.shape[1], j < self.source.shape[2])
        zero = T.broadcast(T.float32(0.0), self.v) if self.v > 1 else T.float32(0.0)
        return [T.if_then_else(inside, self.source[self.pair, i, span(j, self.v)], zero)]

    def store(self, part: Expr, values: list[Expr]) -> None:
        """Rounded to half floats."""
        at = part // self.per_row * self.stride + part % self.per_row * self.v
        T.buffer_store(self.part, T.cast(values[0], vector("float16", self.v)), [span(at, self.v)])


def _vector(length: int) -> int:
    """How many elements of a row, whose rows are ``length`` long, can be moved at once."""
    return 4 if length % 4 == 0 else 1
