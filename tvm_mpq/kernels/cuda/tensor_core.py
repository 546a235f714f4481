"""Convolution and matrix multiplication on tensor cores, as one program: 16×16×16 fragments of int8 or float16.

The input is unfolded to a matrix on the way (NHWC, see ``convolution``): a thread block makes a tile of it at a time in
shared memory, beside the weights of its columns, and each warp multiplies fragments of both.

    for step in reduction / depth:                    (see ``stages``)
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

from tvm_mpq.kernels.convolution import ConvolutionShape, packed_weight_shape
from tvm_mpq.kernels.cuda.block_program import (
    BlockProgram,
    Problem,
    all_of,
    c_stride,
    shared,
    span,
    spread,
    vector,
)
from tvm_mpq.kernels.cuda.fragments import AREA, Operand, WarpProduct
from tvm_mpq.kernels.cuda.int4_core import int4_held, int4_shared
from tvm_mpq.kernels.cuda.patches import vector_of
from tvm_mpq.kernels.cuda.stages import MOST_UNROLLED, Stage, run_stages
from tvm_mpq.kernels.cuda.tile import FRAGMENT, CudaTile
from tvm_mpq.kernels.cuda.weight_stage import WeightParts, weight_stage
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.neon import OFFSET

_EACH = 0x01010101
_PAD = {"int8": 32, "float16": 8}
"""Elements that keep what is written to ``a`` at a time from meeting in the same banks of shared memory."""


def tensor_core(problem: Problem, tile: CudaTile) -> PrimFunc:
    """The kernel; parameters are those of :func:`tvm_mpq.kernels.convolution.convolution`."""
    return _TensorCore(problem, tile).emit()


def tensor_shared(row: Intrinsic, tile: CudaTile) -> int:
    """Bytes of shared memory that a block of ``tile`` has."""
    if row.family == "imma4":
        return int4_shared(tile)
    size = 1 if row.activation == "int8" else 2
    staged = _Patches.of(row, tile).length + tile.columns * tile.depth * FRAGMENT
    return size * staged + 4 * tile.rows * c_stride(tile)


def tensor_held(shape: ConvolutionShape, row: Intrinsic, tile: CudaTile) -> int:
    """How many registers of a thread hold what is loaded ahead; 0 where it can hold nothing.

    That is where there is one step only, single bytes are moved, or loops over a thread's parts are not unrolled.
    """
    if row.family == "imma4":
        return int4_held(shape, row, tile)
    depth = tile.depth * FRAGMENT
    v = _vector_of(shape, row)
    integer = row.activation == "int8"
    if packed_weight_shape(shape, row)[2] == tile.depth or (integer and v < 4):
        return 0
    weights = WeightParts.of(row)
    parts = [
        (tile.rows * depth // v, v // 4 if integer else v),
        (tile.columns * tile.depth * weights.per_lane, weights.words + row.multiplied),
    ]
    turns = [(-(-count // tile.threads), each) for count, each in parts]
    if max(count for count, _ in turns) > MOST_UNROLLED:
        return 0
    return sum(count * each for count, each in turns)


def _vector_of(shape: ConvolutionShape, row: Intrinsic) -> int:
    """Neighbours in memory that a thread moves at once: up to 16 bytes."""
    return vector_of(shape, 16 if row.activation == "int8" else 4)


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

    def multiply(self) -> None:
        """By fragments, each warp its own."""
        patches, weights = _PatchStage(self), weight_stage(self)
        lies = patches.lies
        left = Operand(
            *(patches.a, "row_major", lies.stride), lambda row, k: row * lies.stride + k * lies.depth_stride
        )
        right = Operand(
            *(weights.b, "col_major", FRAGMENT),
            lambda column, k: (column // FRAGMENT * self.tile.depth + k) * AREA,
        )
        product = WarpProduct(self.tile, self.t, self.row.activation, self.row.accumulator)
        steps = self.steps // self.tile.depth
        run_stages([patches, weights], steps, self.tile.ahead, lambda: product.add(left, right))
        product.store(self.c, self.c_stride)


class _PatchStage(Stage):
    """``a``: patches of the input. A part are so many neighbours in memory as a thread can move at once."""

    def __init__(self, program: BlockProgram) -> None:
        self.program, tile = program, program.tile
        self.lies = _Patches.of(program.row, tile)
        self.a = shared(self.lies.length, program.row.activation)
        self.depth = tile.depth * FRAGMENT
        self.v = _vector_of(program.shape, program.row)
        self.words = self.v // 4 if program.integer else 0
        held = ("float32", self.v) if not program.integer else ("uint32", self.words)
        super().__init__(
            *(tile.rows * self.depth // self.v, tile.threads, program.t),
            [held if self.words or not program.integer else ("uint8", self.v)],
        )

    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """Elements of the input, as words where they are bytes, and what stands for those outside of it."""
        program, (i, k) = self.program, self._place(part)
        at = program.patch(i, T.bind(step * self.depth + k))
        value, inside = program.x[at.pixel, span(at.channel, self.v)], all_of(at.conditions)
        if not program.integer:
            return [T.if_then_else(inside, value, spread(T.float32(0.0), self.v))]
        if not self.words:
            return [T.if_then_else(inside, value, spread(T.cast(program.grid[0], "uint8"), self.v))]
        fill = spread(T.cast(program.grid[0], "uint32") * T.uint32(_EACH), self.words)
        return [T.if_then_else(inside, T.reinterpret(value, dtype=vector("uint32", self.words)), fill)]

    def store(self, part: Expr, values: list[Expr]) -> None:
        """Rounded to half floats, or less 128."""
        i, k = self._place(part)
        place = k // FRAGMENT * self.lies.depth_stride + i * self.lies.stride + k % FRAGMENT
        if not self.program.integer:
            value = T.cast(values[0], vector("float16", self.v))
        else:
            flip = T.uint32(OFFSET * _EACH) if self.words else T.uint8(OFFSET)
            value = values[0] ^ spread(flip, self.words or self.v)
            value = T.reinterpret(value, dtype=vector("int8", self.v))
        T.buffer_store(self.a, value, [span(place, self.v)])

    def _place(self, part: Expr) -> tuple[Expr, Expr]:
        per_row = self.depth // self.v
        return part // per_row, part % per_row * self.v
