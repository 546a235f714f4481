"""Weights of a thread block's columns on their way to shared memory, in the dtype that tensor cores multiply.

What is stored in that dtype is copied. Codes of up to four bits are unpacked in registers; where activations are half
floats, codes become half floats there too: a byte below the exponent of 1024 is that number of units above 1024, so a
subtraction makes two codes numbers at once. Codes times their groups' factors stay within a byte, exact in both.
"""

from __future__ import annotations

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

from tvm_mpq.kernels.cuda.block_program import BlockProgram, shared, span
from tvm_mpq.kernels.cuda.tile import FRAGMENT
from tvm_mpq.kernels.cuda.words import codes_of_nibbles, halves_of_bytes, nibbles
from tvm_mpq.kernels.neon import OFFSET
from tvm_mpq.kernels.tensor_intrinsics import NIBBLE_OFFSET

_EACH = 0x01010101
_NO_CODES = NIBBLE_OFFSET * 0x11 * _EACH


class WeightStage:
    """``b`` [columns / 16, depth, 16 columns, 16] in shared memory, filled anew at each step of ``program``."""

    def __init__(self, program: BlockProgram) -> None:
        self.program, self.row = program, program.row
        self.depth = program.tile.depth
        self.b: Buffer = shared(program.tile.columns * self.depth * FRAGMENT, self.row.activation)

    def fill(self, step: Expr) -> None:
        """With the weights of ``step``; zero in columns past the last."""
        if self.row.activation == "float16" and self.row.weight != "float16":
            self._halves(step)
        elif self.row.nibbles:
            self._unpack(step)
        else:
            self._copy(step)

    def _copy(self, step: Expr) -> None:
        v = 16 if self.row.weight == "int8" else 8
        per_lane = FRAGMENT // v
        per_block = self.depth * FRAGMENT * per_lane
        with self.program.each(self.program.column_blocks * per_block) as index:
            block, within = index // per_block, index % per_block
            at = step * self.depth + within // (FRAGMENT * per_lane)
            source = self._weight(block, at, within // per_lane % FRAGMENT, span(within % per_lane * v, v))
            # TVM spells a vector of sixteen equal bytes wrongly: it is made of words.
            zero = T.reinterpret(T.broadcast(T.uint32(0), 4), dtype=f"{self.row.weight}x{v}")
            value = T.if_then_else(self._inside(block), source, zero)
            T.buffer_store(self.b, value, [span(index * v, v)])

    def _unpack(self, step: Expr) -> None:
        """Two codes a byte: those of places 0 … 7 of a fragment in the low halves, of 8 … 15 in the high ones."""
        per_block = self.depth * FRAGMENT
        with self.program.each(self.program.column_blocks * per_block) as index:
            block, k, lane = index // per_block, index % per_block // FRAGMENT, index % FRAGMENT
            at = T.bind(step * self.depth + k)
            for half in range(2):
                source = self._weight(block, at, lane, T.ramp(half * 4, 1, 4))
                word = T.bind(
                    T.if_then_else(
                        self._inside(block), T.reinterpret(source, dtype="uint32"), T.uint32(_NO_CODES)
                    )
                )
                for high in range(2):
                    codes = T.reinterpret(codes_of_nibbles(word, high), dtype="int8x4")
                    if self.row.multiplied:
                        factor = T.bind(T.Cast("int32", self._factor(block, at, lane)))
                        codes = T.Cast("int8x4", T.Cast("int32x4", codes) * T.broadcast(factor, 4))
                    target = span(index * FRAGMENT + 8 * high + 4 * half, 4)
                    T.buffer_store(self.b, codes, [target])

    def _halves(self, step: Expr) -> None:
        """Eight codes a thread, of bytes or of the low or high halves of eight bytes."""
        per_block = self.depth * FRAGMENT * 2
        with self.program.each(self.program.column_blocks * per_block) as index:
            block, within = index // per_block, index % per_block
            at, lane, part = (
                T.bind(step * self.depth + within // (2 * FRAGMENT)),
                within // 2 % FRAGMENT,
                within % 2,
            )
            first, none = (T.int32(0), _NO_CODES) if self.row.nibbles else (part * 8, 0)
            source = self._weight(block, at, lane, span(first, 8))
            words = T.bind(
                T.if_then_else(
                    self._inside(block),
                    T.reinterpret(source, dtype="uint32x2"),
                    T.broadcast(T.uint32(none), 2),
                )
            )
            factor = T.bind(T.Cast("float16", self._factor(block, at, lane))) if self.row.multiplied else None
            pairs = []
            for place in range(2):
                word = tirx.Shuffle([words], [T.int32(place)])
                if self.row.nibbles:
                    pairs += halves_of_bytes(nibbles(word, 4 * part), NIBBLE_OFFSET, factor)
                else:
                    pairs += halves_of_bytes(word ^ T.uint32(OFFSET * _EACH), OFFSET, factor)
            eight = tirx.Shuffle(pairs, [T.int32(i) for i in range(4)])
            T.buffer_store(self.b, T.reinterpret(eight, dtype="float16x8"), [span(index * 8, 8)])

    def _weight(self, block: Expr, step: Expr, lane: Expr, elements: Expr) -> Expr:
        return self.program.weight[self.program.g, self.program.first_block + block, step, 0, lane, elements]

    def _inside(self, block: Expr) -> Expr:
        return self.program.first_block + block < self.program.blocks

    def _factor(self, block: Expr, step: Expr, lane: Expr) -> Expr:
        """Of the group of weights that a step belongs to."""
        program = self.program
        shape, group = program.shape, program.problem.weight_group
        row_steps = program.steps // shape.kernel[0]
        at = step // row_steps * -(-shape.run // group) + step % row_steps * FRAGMENT // group
        factor = program.factor[program.g, program.first_block + block, at, lane]
        return T.if_then_else(self._inside(block), factor, T.int8(0))
