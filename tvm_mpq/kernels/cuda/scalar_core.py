"""Convolution and matrix multiplication in float32, without tensor cores, as one program.

for step in reduction / 16:
    shared a[16, rows] = patches of x, zero in padding;  shared b[16, columns] = weights, widened
    for k in 16:  acc[4, 4] += a[k, 4 rows] · b[k, 4 columns]      (registers: fused multiply-adds)
shared c = acc;  out = c (times the channel's scale) + bias, activated
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.cuda.block_program import BlockProgram, Problem, all_of, c_stride, shared, span
from tvm_mpq.kernels.cuda.patches import vector_of
from tvm_mpq.kernels.cuda.tile import PART, STEP, CudaTile
from tvm_mpq.kernels.narrow_weights import widened


def scalar_core(problem: Problem, tile: CudaTile) -> PrimFunc:
    """The kernel; parameters are those of :func:`tvm_mpq.kernels.convolution.convolution`."""
    return _ScalarCore(problem, tile).emit()


def scalar_shared(tile: CudaTile) -> int:
    """Bytes of shared memory that a block of ``tile`` has."""
    return 4 * (STEP * (tile.rows + PART + tile.columns) + tile.rows * c_stride(tile))


class _ScalarCore(BlockProgram):
    def multiply(self) -> None:
        """A square of results each thread."""
        tile = self.tile
        # Rows of ``a`` are written down its columns: an odd number of vectors keeps those in different banks.
        self.a_stride = tile.rows + PART
        self.a = shared(STEP * self.a_stride, "float32")
        self.b = shared(STEP * tile.columns, "float32")
        acc, left, right = (_registers(length) for length in (PART * PART, PART, PART))
        across = tile.columns // PART
        row, column = self.t // across * PART, self.t % across * PART
        with T.unroll(0, PART * PART) as i:
            T.buffer_store(acc, T.float32(0.0), [i])
        with T.serial(0, -(-self.steps // STEP)) as step:
            self._stage(step)
            with T.unroll(0, STEP) as k:
                T.buffer_store(left, self.a[span(k * self.a_stride + row, PART)], [T.ramp(0, 1, PART)])
                T.buffer_store(right, self.b[span(k * tile.columns + column, PART)], [T.ramp(0, 1, PART)])
                for i in range(PART):
                    for j in range(PART):
                        at = i * PART + j
                        T.buffer_store(acc, acc[at] + left[i] * right[j], [at])
        for i in range(PART):
            target = span((row + i) * self.c_stride + column, PART)
            T.buffer_store(self.c, acc[span(T.int32(i * PART), PART)], [target])

    def _stage(self, step: Expr) -> None:
        tile = self.tile
        v = min(vector_of(self.shape, 4), 4)
        per_row = STEP // v
        with self.each(tile.rows * per_row) as index:
            i, k = index // per_row, index % per_row * v
            at = self.patch(i, T.bind(step * STEP + k))
            conditions = at.conditions
            if self.steps % STEP:
                conditions = (*conditions, step * STEP + k < self.length)
            inside = all_of(conditions)
            for j in range(v):
                value = T.if_then_else(inside, self.x[at.pixel, at.channel + j], T.float32(0.0))
                T.buffer_store(self.a, value, [(k + j) * self.a_stride + i])
        with self.each(STEP * tile.columns) as index:
            k, j = index // tile.columns, index % tile.columns
            block, at_step = self.first_block + j // self.lanes, step * STEP + k
            inside = T.And(block < self.blocks, at_step < self.steps)
            value = widened(self.weight[self.g, block, at_step, 0, j % self.lanes, 0], self.row.weight)
            T.buffer_store(self.b, T.if_then_else(inside, value, T.float32(0.0)), [index])


def _registers(length: int) -> Buffer:
    return T.alloc_buffer((length,), "float32", scope="local", layout=None)
