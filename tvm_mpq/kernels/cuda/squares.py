"""Products of matrices in float32 without tensor cores: each thread of a block makes a square of results."""

from __future__ import annotations

from dataclasses import replace

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

from tvm_mpq.kernels.cuda.block_program import span
from tvm_mpq.kernels.cuda.tile import PART, STEP, WARP, CudaTile


class SquareProduct:
    """The sums of 4 × 4 results in a thread's registers, in which they begin as zero."""

    def __init__(self, tile: CudaTile, thread: Expr) -> None:
        self.columns = tile.columns
        across = tile.columns // PART
        self.row, self.column = thread // across * PART, thread % across * PART
        self.sums, self.left, self.right = (_registers(length) for length in (PART * PART, PART, PART))
        with T.unroll(0, PART * PART) as i:
            T.buffer_store(self.sums, T.float32(0.0), [i])

    def add(self, a: Buffer, stride: int, b: Buffer) -> None:
        """aᵀ · b of shared memory: ``a`` [16, rows] with rows ``stride`` apart, ``b`` [16, columns]."""
        with T.unroll(0, STEP) as k:
            T.buffer_store(self.left, a[span(k * stride + self.row, PART)], [T.ramp(0, 1, PART)])
            T.buffer_store(self.right, b[span(k * self.columns + self.column, PART)], [T.ramp(0, 1, PART)])
            for i in range(PART):
                for j in range(PART):
                    at = i * PART + j
                    T.buffer_store(self.sums, self.sums[at] + self.left[i] * self.right[j], [at])

    def store(self, c: Buffer, stride: int) -> None:
        """The sums, to the block's matrix ``c`` with rows ``stride`` apart."""
        for i in range(PART):
            target = span((self.row + i) * stride + self.column, PART)
            T.buffer_store(c, self.sums[span(T.int32(i * PART), PART)], [target])


def square_tile(tile: CudaTile) -> CudaTile:
    """``tile`` with the threads that its results need, 4 × 4 a thread."""
    return replace(tile, warp_rows=tile.rows * tile.columns // (PART * PART * WARP), warp_columns=1)


def _registers(length: int) -> Buffer:
    return T.alloc_buffer((length,), "float32", scope="local", layout=None)
