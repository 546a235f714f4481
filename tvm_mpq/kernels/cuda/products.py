"""Products of many pairs of matrices, neither of them a weight: by tensor cores as half floats, or in float32.

A thread block makes a tile of one pair's result:

    for step in reduction / depth:                    (see ``stages``)
        shared a[rows, depth], b[depth, columns] = parts of both, in float16 or float32; zero past their ends
        acc += a · b                                  (wmma: float32 sums; or fused multiply-adds)
    shared c = acc;  out = c

Rows, columns and the reduction are padded to whole tiles in shared memory, so that every shape runs here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.cuda.block_program import c_stride, shared, span, vector
from tvm_mpq.kernels.cuda.fragments import Operand, WarpProduct
from tvm_mpq.kernels.cuda.squares import SquareProduct, square_tile
from tvm_mpq.kernels.cuda.stages import MOST_UNROLLED, Each, Stage, run_stages
from tvm_mpq.kernels.cuda.tile import FRAGMENT, PART, STEP, CudaTile, spread_tile
from tvm_mpq.kernels.cuda.units import with_work
from tvm_mpq.kernels.emitting import When, argument, program

_MOST_DEPTH = 4
_PAD = 8
"""Elements that keep rows of a factor in different banks of shared memory."""


def half_products(batch: int, rows: int, depth: int, columns: int) -> PrimFunc:
    """a [batch, rows, depth] · b [batch, depth, columns] → out [batch, rows, columns], float32; factors are rounded."""
    return _HalfProducts(batch, rows, depth, columns).emit()


def float_products(batch: int, rows: int, depth: int, columns: int) -> PrimFunc:
    """a [batch, rows, depth] · b [batch, depth, columns] → out [batch, rows, columns], float32."""
    return _FloatProducts(batch, rows, depth, columns).emit()


class _Products(ABC):
    step: str
    """What multiplies, as in ``gpu.STEPS``."""
    fewest_columns = FRAGMENT
    """Of a block, which needs whole warps."""

    def __init__(self, batch: int, rows: int, depth: int, columns: int) -> None:
        self.batch, self.extents = batch, (rows, depth, columns)
        spread = spread_tile(
            *(rows, max(columns, self.fewest_columns), min(_MOST_DEPTH, -(-depth // FRAGMENT))),
            lambda m, n: batch * -(-rows // m) * -(-columns // n),
        )
        self.tile = self.shaped(spread)
        self.length = self.tile.depth * FRAGMENT
        self.steps = -(-depth // self.length)
        self.tiles = -(-rows // self.tile.rows), -(-columns // self.tile.columns)

    @abstractmethod
    def shaped(self, tile: CudaTile) -> CudaTile:
        """The default tile, as what multiplies has it."""

    @abstractmethod
    def multiply(self, a: Buffer, b: Buffer, row: Expr, column: Expr, c: Buffer) -> None:
        """The whole reduction of the tile of results that begins at ``row`` and ``column``, to ``c``."""

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
                    c = shared(tile.rows * c_stride(tile), "float32")
                    self.multiply(a, b, row, column, c)
                    self._finish(c, out, row, column)
        padded = self.tiles[0] * tile.rows * self.tiles[1] * tile.columns * self.steps * self.length
        macs = self.batch * rows * depth * columns
        return with_work(builder.get(), self.step, macs, float(self.batch * padded))

    def _finish(self, c: Buffer, out: Buffer, row: Expr, column: Expr) -> None:
        tile, v = self.tile, _vector(int(out.shape[2]))
        per_row = tile.columns // v
        with Each(tile.rows * per_row, tile.threads, self.t) as index:
            i, j = index // per_row, index % per_row * v
            with When([row + i < out.shape[1], column + j < out.shape[2]]):
                value = c[span(i * c_stride(tile) + j, v)]
                T.buffer_store(out, value, [self.pair, row + i, span(column + j, v)])


class _HalfProducts(_Products):
    step = "hmma"

    def shaped(self, tile: CudaTile) -> CudaTile:
        return tile

    def multiply(self, a: Buffer, b: Buffer, row: Expr, column: Expr, c: Buffer) -> None:
        """By fragments, each warp its own."""
        tile, length = self.tile, self.length
        left = _Half(self, a, (tile.rows, length), lambda step: (row, step * length))
        right = _Half(self, b, (length, tile.columns), lambda step: (step * length, column))
        factors = (
            Operand(left.part, "row_major", left.stride, lambda i, k: i * left.stride + k * FRAGMENT),
            Operand(right.part, "row_major", right.stride, lambda j, k: k * FRAGMENT * right.stride + j),
        )
        product = WarpProduct(tile, self.t, "float16", "float32")
        ahead = left.turns + right.turns <= MOST_UNROLLED
        run_stages([left, right], self.steps, ahead, lambda: product.add(*factors))
        product.store(c, c_stride(tile))


class _FloatProducts(_Products):
    step = "ffma"
    fewest_columns = 2 * FRAGMENT

    def shaped(self, tile: CudaTile) -> CudaTile:
        return replace(square_tile(tile), depth=STEP // FRAGMENT)

    def multiply(self, a: Buffer, b: Buffer, row: Expr, column: Expr, c: Buffer) -> None:
        """A square of results each thread."""
        tile = self.tile
        left = _Turned(self, a, (tile.rows, STEP), lambda step: (row, step * STEP))
        right = _Single(self, b, (STEP, tile.columns), lambda step: (step * STEP, column))
        product = SquareProduct(tile, self.t)
        stages = [left, right]
        run_stages(stages, self.steps, True, lambda: product.add(left.part, left.stride, right.part))
        product.store(c, c_stride(tile))


class _Factor(Stage):
    """The ``extents`` of the pair's factor ``source`` from ``first`` of a step on; zero past the factor's ends."""

    part: Buffer
    stride: int

    def __init__(
        self,
        products: _Products,
        source: Buffer,
        extents: tuple[int, int],
        first: Callable[[Expr], tuple[Expr, Expr]],
    ) -> None:
        self.pair, self.source, self.first = products.pair, source, first
        self.v = _vector(int(source.shape[2]))
        self.per_row = extents[1] // self.v
        self.reserve_shared(*extents)
        super().__init__(extents[0] * self.per_row, products.tile.threads, products.t, [("float32", self.v)])

    @abstractmethod
    def reserve_shared(self, rows: int, columns: int) -> None:
        """Set ``part`` and ``stride``."""

    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """Neighbours of a row."""
        (row, column), (i, j) = self.first(step), self.place(part)
        inside = T.And(row + i < self.source.shape[1], column + j < self.source.shape[2])
        zero = T.broadcast(T.float32(0.0), self.v) if self.v > 1 else T.float32(0.0)
        return [T.if_then_else(inside, self.source[self.pair, row + i, span(column + j, self.v)], zero)]

    def place(self, part: Expr) -> tuple[Expr, Expr]:
        """Row and column of the first element of a part."""
        return part // self.per_row, part % self.per_row * self.v


class _Half(_Factor):
    def reserve_shared(self, rows: int, columns: int) -> None:
        self.stride = columns + _PAD
        self.part = shared(rows * self.stride, "float16")

    def store(self, part: Expr, values: list[Expr]) -> None:
        """Rounded to half floats."""
        i, j = self.place(part)
        value = T.cast(values[0], vector("float16", self.v))
        T.buffer_store(self.part, value, [span(i * self.stride + j, self.v)])


class _Single(_Factor):
    def reserve_shared(self, rows: int, columns: int) -> None:
        self.stride = columns
        self.part = shared(rows * columns, "float32")

    def store(self, part: Expr, values: list[Expr]) -> None:
        """As they are."""
        i, j = self.place(part)
        T.buffer_store(self.part, values[0], [span(i * self.stride + j, self.v)])


class _Turned(_Factor):
    def reserve_shared(self, rows: int, columns: int) -> None:
        # Rows are written down the columns: an odd number of vectors keeps those in different banks.
        self.stride = rows + PART
        self.part = shared(columns * self.stride, "float32")

    def store(self, part: Expr, values: list[Expr]) -> None:
        """Each to its row."""
        i, j = self.place(part)
        for each in range(self.v):
            value = tirx.Shuffle([values[0]], [T.int32(each)]) if self.v > 1 else values[0]
            T.buffer_store(self.part, value, [(j + each) * self.stride + i])


def _vector(length: int) -> int:
    """How many elements of a row, whose rows are ``length`` long, can be moved at once."""
    return 4 if length % 4 == 0 else 1
