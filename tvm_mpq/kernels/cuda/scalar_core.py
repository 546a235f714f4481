"""Convolution and matrix multiplication in float32, without tensor cores, as one program.

for step in reduction / 16:                           (see ``stages``)
    shared a[16, rows] = patches of x, zero in padding;  shared b[16, columns] = weights, widened
    for k in 16:  acc[4, 4] += a[k, 4 rows] · b[k, 4 columns]      (registers: fused multiply-adds)
shared c = acc;  out = c (times the channel's scale) + bias, activated
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.cuda.block_program import BlockProgram, Problem, all_of, c_stride, shared, span
from tvm_mpq.kernels.cuda.patches import vector_of
from tvm_mpq.kernels.cuda.squares import SquareProduct
from tvm_mpq.kernels.cuda.stages import Stage, run_stages
from tvm_mpq.kernels.cuda.tile import PART, STEP, CudaTile
from tvm_mpq.kernels.narrow_weights import stored_dtype, widened


def scalar_core(problem: Problem, tile: CudaTile) -> PrimFunc:
    """The kernel; parameters are those of :func:`tvm_mpq.kernels.convolution.convolution`."""
    return _ScalarCore(problem, tile).emit()


def scalar_shared(tile: CudaTile) -> int:
    """Bytes of shared memory that a block of ``tile`` has."""
    return 4 * (STEP * (tile.rows + PART + tile.columns) + tile.rows * c_stride(tile))


class _ScalarCore(BlockProgram):
    def multiply(self) -> None:
        """A square of results each thread."""
        patches, weights = _PatchStage(self), _WeightStage(self)
        product = SquareProduct(self.tile, self.t)
        run_stages(
            [patches, weights],
            -(-self.steps // STEP),
            self.tile.ahead,
            lambda: product.add(patches.a, patches.stride, weights.b),
        )
        product.store(self.c, self.c_stride)


class _PatchStage(Stage):
    """``a`` [16, rows]: patches of the input; a part are up to four neighbours, which go to as many rows of it."""

    def __init__(self, program: BlockProgram) -> None:
        tile, self.program = program.tile, program
        # Rows of ``a`` are written down its columns: an odd number of vectors keeps those in different banks.
        self.stride = tile.rows + PART
        self.a = shared(STEP * self.stride, "float32")
        self.v = vector_of(program.shape, PART)
        super().__init__(tile.rows * STEP // self.v, tile.threads, program.t, [("float32", self.v)])

    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """Zero outside of the input and of the reduction."""
        program, (i, k) = self.program, self._place(part)
        at = program.patch(i, T.bind(step * STEP + k))
        conditions = at.conditions
        if program.steps % STEP:
            conditions = (*conditions, step * STEP + k < program.length)
        zero = T.broadcast(T.float32(0.0), self.v) if self.v > 1 else T.float32(0.0)
        return [T.if_then_else(all_of(conditions), program.x[at.pixel, span(at.channel, self.v)], zero)]

    def store(self, part: Expr, values: list[Expr]) -> None:
        """Each to its row."""
        i, k = self._place(part)
        for j in range(self.v):
            value = tirx.Shuffle([values[0]], [T.int32(j)]) if self.v > 1 else values[0]
            T.buffer_store(self.a, value, [(k + j) * self.stride + i])

    def _place(self, part: Expr) -> tuple[Expr, Expr]:
        per_row = STEP // self.v
        return part // per_row, part % per_row * self.v


class _WeightStage(Stage):
    """``b`` [16, columns]: weights, one a part; zero past the last column and the end of the reduction."""

    def __init__(self, program: BlockProgram) -> None:
        tile, self.program = program.tile, program
        self.b = shared(STEP * tile.columns, "float32")
        held = [(stored_dtype(program.row.weight), 1)]
        super().__init__(STEP * tile.columns, tile.threads, program.t, held)

    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """As they are stored, where zero is zero."""
        program, columns = self.program, self.program.tile.columns
        j, at = part % columns, step * STEP + part // columns
        block = program.first_block + j // program.lanes
        value = program.weight[program.g, block, at, 0, j % program.lanes, 0]
        inside = T.And(block < program.blocks, at < program.steps)
        return [T.if_then_else(inside, value, tirx.const(0, self.held[0][0]))]

    def store(self, part: Expr, values: list[Expr]) -> None:
        """Widened."""
        T.buffer_store(self.b, widened(values[0], self.program.row.weight), [part])
