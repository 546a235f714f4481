"""What programs of convolutions and matrix multiplications have in common: parameters, stages and the results.

A thread block makes a tile of ``rows`` × ``columns`` results: it stages parts of the reduction in shared memory, and
leaves its sums there for the last step, which all threads share.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.convolution import (
    ConvolutionShape,
    Output,
    activate,
    packed_factor_shape,
    packed_weight_shape,
)
from tvm_mpq.kernels.cuda.patches import Place, place
from tvm_mpq.kernels.cuda.stages import Each
from tvm_mpq.kernels.cuda.tile import CudaTile
from tvm_mpq.kernels.emitting import When, addition_arguments, argument, program
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.narrow_weights import stored_dtype
from tvm_mpq.kernels.requantize import requantize


@dataclass(frozen=True)
class Problem:
    """What is computed: the arguments of :func:`tvm_mpq.kernels.convolution.convolution`."""

    shape: ConvolutionShape
    in_dtype: str
    out: Output
    row: Intrinsic
    weight_group: int = 0
    adds: bool = False


class BlockProgram(ABC):
    """A kernel's program. Parameters are those of the definition; its subclasses know how to multiply."""

    def __init__(self, problem: Problem, tile: CudaTile) -> None:
        self.problem, self.tile = problem, tile
        self.shape, self.row, self.out = problem.shape, problem.row, problem.out
        self.integer = problem.in_dtype == "uint8"
        # Integers, two in a byte or one, with a scale for each column.
        self.codes = problem.row.weight in ("int8", "uint8")
        self.weight_shape = packed_weight_shape(self.shape, self.row)
        self.groups, self.blocks, self.steps = self.weight_shape[:3]
        self.lanes = self.row.lanes
        self.channels = self.shape.out_channels // self.shape.groups
        self.length = self.steps * self.row.group
        self.column_blocks = tile.columns // self.lanes
        self.c_stride = c_stride(tile)

    def emit(self) -> PrimFunc:
        """The function."""
        with program() as builder:
            self._parameters()
            with T.sblock("root"):
                # TVM cannot tell what a matrix load reads; nothing is placed or moved around this block.
                T.reads()
                T.writes()
                columns = -(-self.blocks // self.column_blocks)
                block_m = T.launch_thread("blockIdx.x", -(-self.shape.rows // self.tile.rows))
                block_n = T.launch_thread("blockIdx.y", self.groups * columns)
                thread = T.launch_thread("threadIdx.x", self.tile.threads)
                with block_m as bm, block_n as bn, thread as t:
                    self.t, self.first_row = t, bm * self.tile.rows
                    whole = self.groups == 1
                    self.g = T.int32(0) if whole else bn // columns
                    self.first_block = (bn if whole else bn % columns) * self.column_blocks
                    self.c = shared(self.tile.rows * self.c_stride, self.row.accumulator)
                    self.multiply()
                    self._finish()
        return builder.get()

    @abstractmethod
    def multiply(self) -> None:
        """The whole reduction of the block's rows and columns, which ends in ``c``."""

    def _parameters(self) -> None:
        shape, row = self.shape, self.row
        pixels = shape.batch * shape.height * shape.width
        self.x = argument("x", (pixels, shape.in_channels), self.problem.in_dtype)
        self.weight = argument("weight", self.weight_shape, stored_dtype(row.weight))
        if row.multiplied:
            factors = packed_factor_shape(shape, row, self.problem.weight_group)
            self.factor = argument("factor", factors, "int8")
        each = (self.groups, self.blocks, self.lanes)
        self.bias = argument("bias", each, row.accumulator)
        if self.integer or self.codes:
            self.multiplier = argument("multiplier", each, "float32")
        if self.integer:
            self.grid = argument("grid", (2,), "int32")
        dims = (shape.rows, shape.out_channels)
        if self.problem.adds:
            self.addition = addition_arguments(*dims)
        self.result = argument("out", dims, self.out.dtype)

    def patch(self, i: Expr, k: Expr, beyond: int = 0) -> Place:
        """Of row ``i`` of the block and place ``k + beyond`` of the reduction, both of one kernel row."""
        return place(self.shape, self.length, self.g, self.first_row + i, k, beyond)

    def each(self, count: int) -> Each:
        """``with self.each(count) as index:`` the numbers below ``count`` that this thread has, in turn."""
        return Each(count, self.tile.threads, self.t)

    def _finish(self) -> None:
        """``c`` and the bias, requantized, rescaled or activated, to the result."""
        tile = self.tile
        v = 4 if self.channels % 4 == 0 else 1
        per_row = tile.columns // v
        with self.each(tile.rows * per_row) as index:
            i, j = index // per_row, index % per_row * v
            m, channel = self.first_row + i, self.first_block * self.lanes + j
            with When([m < self.shape.rows, channel < self.channels]):
                column = self.g * self.channels + channel
                if v == 1:
                    value = self._finished(m, channel, self.c[i * self.c_stride + j])
                    T.buffer_store(self.result, value, [m, column])
                else:
                    with T.vectorized(0, v) as lane:
                        value = self._finished(m, channel + lane, self.c[i * self.c_stride + j + lane])
                        T.buffer_store(self.result, value, [m, column + lane])

    def _finished(self, m: Expr, channel: Expr, total: Expr) -> Expr:
        at = (self.g, channel // self.lanes, channel % self.lanes)
        if not self.integer:
            scaled = total * self.multiplier[at] if self.codes else total
            return activate(scaled + self.bias[at], self.out)
        value = total + self.bias[at]
        if self.out.dtype != "uint8":
            return activate(T.cast(value, "float32") * self.multiplier[at], self.out)
        code = requantize(value, self.multiplier[at], self.grid[1])
        return self.addition.element(code, m, channel) if self.problem.adds else code


def c_stride(tile: CudaTile) -> int:
    """Elements from one row of a block's sums to the next: columns of fragments are in different banks."""
    return tile.columns + 4


def shared(length: int, dtype: str) -> Buffer:
    """Memory of the thread block."""
    return T.alloc_buffer((length,), dtype, scope="shared", layout=None)


def all_of(conditions: tuple[Expr, ...]) -> Expr:
    """Whether all of ``conditions`` hold, at least one."""
    result = conditions[0]
    for condition in conditions[1:]:
        result = T.And(result, condition)
    return result


def vector(dtype: str, lanes: int) -> str:
    """The dtype of ``lanes`` elements."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def spread(value: Expr, lanes: int) -> Expr:
    """``lanes`` of ``value``."""
    return T.broadcast(value, lanes) if lanes > 1 else value


def span(start: Expr, width: int) -> Expr:
    """``width`` places from ``start`` on."""
    return T.ramp(start, 1, width) if width > 1 else start
