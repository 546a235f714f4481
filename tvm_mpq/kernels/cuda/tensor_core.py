"""Convolution and matrix multiplication on tensor cores, as one program: 16×16×16 fragments of int8 or float16.

The input is unfolded to a matrix on the way (NHWC, see ``convolution``): a thread block makes a tile of it at a time in
shared memory, beside the weights of its columns, and each warp multiplies fragments of both.

    for step in reduction / depth:
        shared a[rows, depth·16] = patches: x − 128 as int8, or x rounded to float16; the zero-point, or 0, in padding
        shared b[columns / 16, depth, 16 columns, 16] = weights, unpacked (see ``weight_stage``)
        acc += a · b                                  (wmma: int32, or float32, sums)
    shared c = acc;  out = c + bias, requantized, or rescaled to float, or activated

Rows, columns and the reduction are padded to whole fragments, so that every shape runs here. Sums of int8 are exact.
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.cuda.block_program import BlockProgram, Problem, all_of, shared, span, vector
from tvm_mpq.kernels.cuda.fragments import AREA, Operand, WarpProduct
from tvm_mpq.kernels.cuda.patches import vector_of
from tvm_mpq.kernels.cuda.tile import FRAGMENT, CudaTile
from tvm_mpq.kernels.cuda.weight_stage import WeightStage
from tvm_mpq.kernels.neon import OFFSET

_PAD = {"int8": 32, "float16": 8}
"""Elements that keep what is written to ``a`` at a time from meeting in the same banks of shared memory."""


def tensor_core(problem: Problem, tile: CudaTile) -> PrimFunc:
    """The kernel; parameters are those of :func:`tvm_mpq.kernels.convolution.convolution`."""
    return _TensorCore(problem, tile).emit()


class _TensorCore(BlockProgram):
    def __init__(self, problem: Problem, tile: CudaTile) -> None:
        super().__init__(problem, tile)
        self.depth = tile.depth * FRAGMENT
        # Fragments must begin at 32 bytes: those of bytes lie one after the other, with all rows of one depth together.
        self.by_depth = self.row.activation == "int8"
        pad = _PAD[self.row.activation]
        self.stride = FRAGMENT if self.by_depth else self.depth + pad
        self.depth_stride = tile.rows * FRAGMENT + pad if self.by_depth else FRAGMENT
        self.a_length = tile.depth * self.depth_stride if self.by_depth else tile.rows * self.stride

    def multiply(self) -> None:
        """By fragments, each warp its own."""
        self.a = shared(self.a_length, self.row.activation)
        weights = WeightStage(self)
        left = Operand(
            *(self.a, "row_major", self.stride), lambda row, k: row * self.stride + k * self.depth_stride
        )
        right = Operand(
            *(weights.b, "col_major", FRAGMENT),
            lambda column, k: (column // FRAGMENT * self.tile.depth + k) * AREA,
        )
        product = WarpProduct(self.tile, self.t, self.row.activation, self.row.accumulator)
        with T.serial(0, self.steps // self.tile.depth) as step:
            self._stage_patches(step)
            weights.fill(step)
            product.add(left, right)
        product.store(self.c, self.c_stride)

    def _stage_patches(self, step: Expr) -> None:
        v = vector_of(self.shape, 16 if self.integer else 4)
        per_row = self.depth // v
        with self.each(self.tile.rows * per_row) as index:
            i, k = index // per_row, index % per_row * v
            at = self.patch(i, T.bind(step * self.depth + k))
            value, inside = self.x[at.pixel, span(at.channel, v)], all_of(at.conditions)
            target = span(k // FRAGMENT * self.depth_stride + i * self.stride + k % FRAGMENT, v)
            if self.integer:
                stored = self._codes(inside, value, v)
            else:
                zero = T.broadcast(T.float32(0.0), v) if v > 1 else T.float32(0.0)
                stored = T.cast(T.if_then_else(inside, value, zero), vector("float16", v))
            T.buffer_store(self.a, stored, [target])

    def _codes(self, inside: Expr, value: Expr, lanes: int) -> Expr:
        """uint8 ``value`` where it is ``inside`` and else the zero-point, less 128, as int8."""
        if lanes < 4:
            fill = T.cast(self.grid[0], "uint8")
            chosen = T.if_then_else(inside, value, fill if lanes == 1 else T.broadcast(fill, lanes))
            flip = T.uint8(OFFSET) if lanes == 1 else T.broadcast(T.uint8(OFFSET), lanes)
            return T.reinterpret(chosen ^ flip, dtype=vector("int8", lanes))
        words = lanes // 4
        fill = T.cast(self.grid[0], "uint32") * T.uint32(0x01010101)
        flip = T.uint32(OFFSET * 0x01010101)
        if words > 1:
            fill, flip = T.broadcast(fill, words), T.broadcast(flip, words)
        chosen = T.if_then_else(inside, T.reinterpret(value, dtype=vector("uint32", words)), fill)
        return T.reinterpret(chosen ^ flip, dtype=f"int8x{lanes}")
