"""Products of 16×16 matrices by tensor cores (``wmma``): what each warp of a thread block does with its part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

from tvm_mpq.kernels.cuda.tile import FRAGMENT, WARP, CudaTile

AREA = FRAGMENT * FRAGMENT
_SIZES = (FRAGMENT, FRAGMENT, FRAGMENT)


@dataclass(frozen=True)
class Operand:
    """A factor in shared memory: the fragment of ``row`` (of the other factor, column) and depth ``k`` is at ``place``.

    ``stride`` elements lie between its rows, or with order "col_major" its columns. Fragments begin at 32 bytes.
    """

    buffer: Buffer
    order: Literal["row_major", "col_major"]
    stride: int
    place: Callable[[Expr, int], Expr]

    def load(self, fragments: Buffer, index: int, row: Expr, k: int) -> None:
        """Into one of the warp's ``fragments``."""
        source = self.buffer.access_ptr("r", offset=self.place(row, k))
        _call(T.tvm_load_matrix_sync(fragments.data, *_SIZES, index, source, self.stride, self.order))


class WarpProduct:
    """The sums of the fragments that are the warp's part of a tile; they begin as zero."""

    def __init__(self, tile: CudaTile, thread: Expr, factors: str, sums: str) -> None:
        self.rows, self.columns = tile.fragments
        self.depth = tile.depth
        warp = thread // WARP
        self.row = warp // tile.warp_columns * (self.rows * FRAGMENT)
        self.column = warp % tile.warp_columns * (self.columns * FRAGMENT)
        self.sums = _fragments(self.rows * self.columns, sums, "accumulator")
        self.left = _fragments(self.rows, factors, "matrix_a")
        self.right = _fragments(self.columns, factors, "matrix_b")
        for each in range(self.rows * self.columns):
            _call(T.tvm_fill_fragment(self.sums.data, *_SIZES, each, T.float32(0.0)))

    def add(self, left: Operand, right: Operand) -> None:
        """The product of what the block staged."""
        for k in range(self.depth):
            for i in range(self.rows):
                left.load(self.left, i, self.row + i * FRAGMENT, k)
            for j in range(self.columns):
                right.load(self.right, j, self.column + j * FRAGMENT, k)
            for i in range(self.rows):
                for j in range(self.columns):
                    sums = (self.sums.data, i * self.columns + j)
                    _call(T.tvm_mma_sync(*sums, self.left.data, i, self.right.data, j, *sums))

    def store(self, c: Buffer, stride: int) -> None:
        """The sums, to the block's matrix ``c`` with rows ``stride`` apart."""
        for i in range(self.rows):
            for j in range(self.columns):
                at = (self.row + i * FRAGMENT) * stride + self.column + j * FRAGMENT
                source = (self.sums.data, *_SIZES, i * self.columns + j)
                _call(T.tvm_store_matrix_sync(*source, c.access_ptr("w", offset=at), stride, "row_major"))


def _fragments(count: int, dtype: str, kind: str) -> Buffer:
    return T.alloc_buffer((count * AREA,), dtype, scope=f"wmma.{kind}", layout=None)


def _call(value: Expr) -> None:
    T.evaluate(value)
