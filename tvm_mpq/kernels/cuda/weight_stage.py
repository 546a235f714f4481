"""Weights of a thread block's columns on their way to shared memory, in the dtype that tensor cores multiply.

What is stored in that dtype is copied. Codes of up to four bits are unpacked in registers; where activations are half
floats, codes become half floats there too: a byte below the exponent of 1024 is that number of units above 1024, so a
subtraction makes two codes numbers at once. Codes times their groups' factors stay within a byte, exact in both.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

from tvm_mpq.kernels.cuda.block_program import BlockProgram, shared, span
from tvm_mpq.kernels.cuda.stages import Stage
from tvm_mpq.kernels.cuda.tile import FRAGMENT
from tvm_mpq.kernels.cuda.words import codes_of_nibbles, halves_of_bytes, nibbles
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.neon import OFFSET
from tvm_mpq.kernels.tensor_intrinsics import NIBBLE_OFFSET

_EACH = 0x01010101
_NO_CODES = NIBBLE_OFFSET * 0x11 * _EACH


@dataclass(frozen=True)
class WeightParts:
    """The 16 weights of a column are moved in ``per_lane`` parts of so many ``words`` of memory."""

    per_lane: int
    words: int

    @classmethod
    def of(cls, row: Intrinsic) -> WeightParts:
        """For the weights of an instruction: words that become 16 bytes, or half floats, in shared memory."""
        if row.weight == row.activation:
            return cls(1 if row.weight == "int8" else 2, 4)
        return cls(2 if row.activation == "float16" else 1, 2)


def weight_stage(program: BlockProgram) -> WeightStage:
    """The stage for the weights that ``program``'s instruction has."""
    row = program.row
    if row.activation == "float16" and row.weight != "float16":
        return _Halves(program)
    return _Nibbles(program) if row.nibbles else _Copied(program)


class WeightStage(Stage):
    """``b`` [columns / 16, depth, 16 columns, 16] in shared memory; zero in columns past the last.

    A part is one of ``per_lane`` equal parts of the 16 weights of a column.
    """

    def __init__(self, program: BlockProgram) -> None:
        self.program, self.row = program, program.row
        parts = WeightParts.of(program.row)
        self.per_lane, self.words = parts.per_lane, parts.words
        self.depth = program.tile.depth
        self.b: Buffer = shared(program.tile.columns * self.depth * FRAGMENT, self.row.activation)
        factor = [("int8", 1)] if self.row.multiplied else []
        count = program.column_blocks * self.depth * FRAGMENT * self.per_lane
        super().__init__(count, program.tile.threads, program.t, [("uint32", self.words), *factor])

    @abstractmethod
    def first(self, part: Expr) -> Expr:
        """Where the elements of a part begin in the column's 16, as they are stored."""

    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """Its elements as words, and its group's factor."""
        program = self.program
        per_block = self.depth * FRAGMENT * self.per_lane
        block, within = program.first_block + part // per_block, part % per_block
        at = T.bind(step * self.depth + within // (FRAGMENT * self.per_lane))
        lane = within // self.per_lane % FRAGMENT
        size = 2 if self.row.weight == "float16" else 1
        elements = span(self.first(within % self.per_lane), 4 * self.words // size)
        source = program.weight[program.g, block, at, 0, lane, elements]
        none = T.broadcast(T.uint32(_NO_CODES if self.row.nibbles else 0), self.words)
        inside = block < program.blocks
        values = [T.if_then_else(inside, T.reinterpret(source, dtype=f"uint32x{self.words}"), none)]
        if self.row.multiplied:
            factor = program.factor[program.g, block, self._group(at), lane]
            values.append(T.if_then_else(inside, factor, T.int8(0)))
        return values

    def _group(self, step: Expr) -> Expr:
        """The group of weights that a step belongs to."""
        shape, size = self.program.shape, self.program.problem.weight_group
        row_steps = self.program.steps // shape.kernel[0]
        return step // row_steps * -(-shape.run // size) + step % row_steps * FRAGMENT // size


class _Copied(WeightStage):
    def first(self, part: Expr) -> Expr:
        return part * (FRAGMENT // self.per_lane)

    def store(self, part: Expr, values: list[Expr]) -> None:
        """As they are."""
        elements = FRAGMENT // self.per_lane
        value = T.reinterpret(values[0], dtype=f"{self.row.weight}x{elements}")
        T.buffer_store(self.b, value, [span(part * elements, elements)])


class _Nibbles(WeightStage):
    """Two codes a byte: those of places 0 … 7 of a fragment in the low halves, of 8 … 15 in the high ones."""

    # Unpacking takes registers: with several turns' loads under way too the assembler kept some in memory.
    unrolled = 1

    def first(self, part: Expr) -> Expr:
        return T.int32(0)

    def store(self, part: Expr, values: list[Expr]) -> None:
        """Sixteen codes, times their group's factor."""
        words = [codes_of_nibbles(_word(values[0], place), high) for high in range(2) for place in range(2)]
        if self.row.multiplied:
            factor = T.broadcast(T.bind(T.Cast("int32", values[1])), 4)
            wide = [T.Cast("int32x4", T.reinterpret(word, dtype="int8x4")) * factor for word in words]
            words = [T.reinterpret(T.Cast("int8x4", each), dtype="int32") for each in wide]
        sixteen = tirx.Shuffle([T.bind(word) for word in words], [T.int32(i) for i in range(4)])
        T.buffer_store(self.b, T.reinterpret(sixteen, dtype="int8x16"), [span(part * FRAGMENT, FRAGMENT)])


class _Halves(WeightStage):
    """Eight codes, of bytes or of the low or high halves of eight bytes."""

    def first(self, part: Expr) -> Expr:
        return T.int32(0) if self.row.nibbles else part * 8

    def store(self, part: Expr, values: list[Expr]) -> None:
        """As half floats, times their group's factor."""
        factor = T.bind(T.Cast("float16", values[1])) if self.row.multiplied else None
        pairs = []
        for place in range(2):
            word = _word(values[0], place)
            if self.row.nibbles:
                pairs += halves_of_bytes(nibbles(word, 4 * (part % 2)), NIBBLE_OFFSET, factor)
            else:
                pairs += halves_of_bytes(word ^ T.uint32(OFFSET * _EACH), OFFSET, factor)
        eight = tirx.Shuffle(pairs, [T.int32(i) for i in range(4)])
        T.buffer_store(self.b, T.reinterpret(eight, dtype="float16x8"), [span(part * 8, 8)])


def _word(words: Expr, place: int) -> Expr:
    return tirx.Shuffle([words], [T.int32(place)])
