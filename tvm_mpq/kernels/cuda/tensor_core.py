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

from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.cuda.block_program import BlockProgram, Problem, all_of, c_stride, shared, span, vector
from tvm_mpq.kernels.cuda.fragments import AREA, Operand, WarpProduct
from tvm_mpq.kernels.cuda.patches import vector_of
from tvm_mpq.kernels.cuda.tile import FRAGMENT, CudaTile
from tvm_mpq.kernels.cuda.weight_stage import WeightStage
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.neon import OFFSET

_PAD = {"int8": 32, "float16": 8}
"""Elements that keep what is written to ``a`` at a time from meeting in the same banks of shared memory."""


def tensor_core(problem: Problem, tile: CudaTile) -> PrimFunc:
    """The kernel; parameters are those of :func:`tvm_mpq.kernels.convolution.convolution`."""
    return _TensorCore(problem, tile).emit()


def tensor_shared(row: Intrinsic, tile: CudaTile) -> int:
    """Bytes of shared memory that a block of ``tile`` has."""
    size = 1 if row.activation == "int8" else 2
    staged = _Patches.of(row, tile).length + tile.columns * tile.depth * FRAGMENT
    return size * staged + 4 * tile.rows * c_stride(tile)


@dataclass(frozen=True)
class _Patches:
    """How ``a`` lies: elements from row to row and from one depth of fragments to the next, and in all."""

    stride: int
    depth_stride: int
    length: int

    @classmethod
    def of(cls, row: Intrinsic, tile: CudaTile) -> _Patches:
        """Fragments must begin at 32 bytes: those of bytes lie one after the other, all rows of one depth together."""
        pad, depth = _PAD[row.activation], tile.depth * FRAGMENT
        if row.activation == "int8":
            depth_stride = tile.rows * FRAGMENT + pad
            return cls(FRAGMENT, depth_stride, tile.depth * depth_stride)
        return cls(depth + pad, FRAGMENT, tile.rows * (depth + pad))


class _TensorCore(BlockProgram):
    def __init__(self, problem: Problem, tile: CudaTile) -> None:
        super().__init__(problem, tile)
        if self.steps % tile.depth:
            raise ValueError(f"{tile.depth} fragments do not divide a reduction of {self.steps}")
        self.depth = tile.depth * FRAGMENT
        self.patches = _Patches.of(self.row, tile)

    def multiply(self) -> None:
        """By fragments, each warp its own."""
        self.a = shared(self.patches.length, self.row.activation)
        weights = WeightStage(self)
        left = Operand(
            *(self.a, "row_major", self.patches.stride),
            lambda row, k: row * self.patches.stride + k * self.patches.depth_stride,
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
            target = span(self._in_patches(i, k), v)
            if self.integer:
                stored = self._codes(inside, value, v)
            else:
                zero = T.broadcast(T.float32(0.0), v) if v > 1 else T.float32(0.0)
                stored = T.cast(T.if_then_else(inside, value, zero), vector("float16", v))
            T.buffer_store(self.a, stored, [target])

    def _in_patches(self, i: Expr, k: Expr) -> Expr:
        lies = self.patches
        return k // FRAGMENT * lies.depth_stride + i * lies.stride + k % FRAGMENT

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
