"""A matrix multiplication of few 8-bit rows by dp4a, four products at a time, as one program.

A thread block has 16 columns; eight threads share the reduction of each, and together read weights in the order in
which they lie. Their sums meet in shared memory.

    for step in reduction / 16, every eighth:
        for row:  acc[row] += dp4a of four words of x − 128 and four of codes      (times the group's factor)
    shared partial[8, rows, 16] = acc;  shared c = Σ partial;  out = c + bias, requantized or rescaled
"""

from __future__ import annotations

from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.cuda.block_program import BlockProgram, Problem, all_of, shared
from tvm_mpq.kernels.cuda.patches import vector_of
from tvm_mpq.kernels.cuda.tile import FRAGMENT, WARP, CudaTile
from tvm_mpq.kernels.cuda.words import codes_of_nibbles, dot, flipped
from tvm_mpq.kernels.emitting import When

MOST_ROWS = 4
_PARTS = 8
_WORD = 4


def dot_rows_fits(shape: ConvolutionShape, in_dtype: str) -> bool:
    """Whether the rows are few enough that tensor cores would mostly multiply padding."""
    return in_dtype == "uint8" and shape.is_plain_matrix() and shape.rows <= MOST_ROWS


def dot_rows_tile(shape: ConvolutionShape) -> CudaTile:
    """All rows, and the columns of one block of weights."""
    return CudaTile(shape.rows, FRAGMENT, 1, _PARTS * FRAGMENT // WARP, 1)


def dot_rows(problem: Problem, tile: CudaTile) -> PrimFunc:
    """The kernel; parameters are those of :func:`tvm_mpq.kernels.convolution.convolution`."""
    return _DotRows(problem, tile).emit()


class _DotRows(BlockProgram):
    def multiply(self) -> None:
        """A part of every row's sum in one column a thread, then the sums of all parts."""
        rows = self.shape.rows
        lane, part = self.t % FRAGMENT, self.t // FRAGMENT
        acc = T.alloc_buffer((rows,), "int32", scope="local", layout=None)
        partial = shared(_PARTS * rows * FRAGMENT, "int32")
        for row in range(rows):
            T.buffer_store(acc, T.int32(0), [row])
        with T.serial(0, -(-self.steps // _PARTS)) as turn:
            step = T.bind(turn * _PARTS + part)
            with When([] if self.steps % _PARTS == 0 else [step < self.steps]):
                codes = [T.bind(code) for code in self._codes(step, lane)]
                factor = None
                if self.row.multiplied:
                    at = step * FRAGMENT // self.problem.weight_group
                    factor = T.bind(T.cast(self.factor[0, self.first_block, at, lane], "int32"))
                for row in range(rows):
                    total: Expr = T.int32(0) if factor is not None else acc[row]
                    for place, code in enumerate(codes):
                        total = dot(self._activations(row, step * FRAGMENT + place * _WORD), code, total)
                    T.buffer_store(acc, total if factor is None else acc[row] + total * factor, [row])
        for row in range(rows):
            T.buffer_store(partial, acc[row], [(part * rows + row) * FRAGMENT + lane])
        with self.each(rows * FRAGMENT) as index:
            total = T.int32(0)
            for each in range(_PARTS):
                total = total + partial[each * rows * FRAGMENT + index]
            T.buffer_store(self.c, total, [index // FRAGMENT * self.c_stride + index % FRAGMENT])

    def _codes(self, step: Expr, lane: Expr) -> list[Expr]:
        """Sixteen codes of a column, as four words."""
        if not self.row.nibbles:
            span = [T.ramp(_WORD * i, 1, _WORD) for i in range(4)]
            return [
                T.reinterpret(self.weight[0, self.first_block, step, 0, lane, at], dtype="int32")
                for at in span
            ]
        words = [
            T.bind(
                T.reinterpret(
                    self.weight[0, self.first_block, step, 0, lane, T.ramp(_WORD * i, 1, _WORD)],
                    dtype="uint32",
                )
            )
            for i in range(2)
        ]
        return [codes_of_nibbles(word, high) for high in range(2) for word in words]

    def _activations(self, row: int, k: Expr) -> Expr:
        """Four of a row, less 128, as a word; anything where the reduction is padded."""
        v = vector_of(self.shape, _WORD)
        if v == _WORD:
            at = self.patch(T.int32(row), k)
            value = T.reinterpret(self.x[at.pixel, T.ramp(at.channel, 1, _WORD)], dtype="uint32")
            if len(at.conditions) > 1:
                value = T.if_then_else(all_of(at.conditions[1:]), value, T.uint32(0))
            return flipped(value)
        word: Expr = T.uint32(0)
        for i in range(_WORD):
            inside = k + i < self.shape.in_channels
            byte = T.if_then_else(inside, T.cast(self.x[row, k + i], "uint32"), T.uint32(0))
            word = T.bitwise_or(word, T.shift_left(byte, T.uint32(8 * i)))
        return flipped(word)
