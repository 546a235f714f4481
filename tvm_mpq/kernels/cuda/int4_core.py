"""Convolution and matrix multiplication of 8 by 4 bits on int4 tensor cores, as one program.

As in ``tensor_core`` a thread block unfolds its part of the input to shared memory. Weights stay packed there, two
codes in a byte, as they are in memory; activations are cut into halves of four bits (see ``int4_product``).

    for step in reduction / depth:                    (see ``stages``)
        shared a = patches: low and high halves of x, eight in a word; the zero-point in padding
        shared b = weights, two in a byte
        low += a's low halves · b;  high += a's high halves · b          (mma.sync: int32 sums)
    shared c = 16 · high + low;  out = c + bias, requantized, or rescaled to float

The reduction ends at a multiple of 64 in shared memory, with weights of zero.
"""

from __future__ import annotations

from tvm import tirx
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
from tvm_mpq.kernels.cuda.int4_product import CHUNKS, Int4Product, PackedColumns, SplitRows
from tvm_mpq.kernels.cuda.patches import vector_of
from tvm_mpq.kernels.cuda.stages import MOST_UNROLLED, Stage, run_stages
from tvm_mpq.kernels.cuda.tile import FRAGMENT, CudaTile
from tvm_mpq.kernels.cuda.words import elements
from tvm_mpq.kernels.intrinsic import Intrinsic

_EACH = 0x01010101
_LOW = 0x0F0F0F0F
_SIGNS = 0x88888888
"""Turned over, these bits make four bits more than eight the signed ones that they are more than by eight."""
_WORDS = 2
"""Of the codes of a chunk."""


def int4_core(problem: Problem, tile: CudaTile) -> PrimFunc:
    """The kernel; parameters are those of :func:`tvm_mpq.kernels.convolution.convolution`."""
    return _Int4Core(problem, tile).emit()


def int4_shared(tile: CudaTile) -> int:
    """Bytes of shared memory that a block of ``tile`` has."""
    staged = SplitRows(tile.rows, tile.depth).length + PackedColumns(tile.columns, tile.depth).length
    return 4 * (staged + tile.rows * c_stride(tile))


def int4_held(shape: ConvolutionShape, row: Intrinsic, tile: CudaTile) -> int:
    """How many registers of a thread hold what is loaded ahead; 0 where it can hold nothing."""
    v = vector_of(shape, FRAGMENT)
    if packed_weight_shape(shape, row)[2] <= tile.depth or v < 4:
        return 0
    turns = [-(-count * tile.depth // tile.threads) for count in (tile.rows, tile.columns)]
    if max(turns[0] * (FRAGMENT // v), turns[1]) > MOST_UNROLLED:
        return 0
    return turns[0] * FRAGMENT // 4 + turns[1] * _WORDS


class _Int4Core(BlockProgram):
    def __init__(self, problem: Problem, tile: CudaTile) -> None:
        super().__init__(problem, tile)
        if tile.depth % CHUNKS:
            raise ValueError(f"a depth of {tile.depth} fragments is no multiple of {CHUNKS}")

    def multiply(self) -> None:
        """By fragments, each warp its own."""
        patches, weights = _SplitStage(self), _PackedStage(self)
        product = Int4Product(self.tile, self.t)
        run_stages(
            [patches, weights],
            -(-self.steps // self.tile.depth),
            self.tile.ahead,
            lambda: product.add(patches.a, patches.lies, weights.b, weights.lies),
        )
        product.store(self.c, self.c_stride)

    def within(self, step: Expr, chunk: Expr) -> tuple[Expr, ...]:
        """The conditions under which a chunk of a step is of the reduction."""
        if self.steps % self.tile.depth == 0:
            return ()
        return (step * self.tile.depth + chunk < self.steps,)


class _SplitStage(Stage):
    """``a``: patches of the input, cut into halves. A part is a chunk of a row, in pieces of neighbours in memory."""

    def __init__(self, program: _Int4Core) -> None:
        self.program, tile = program, program.tile
        self.lies = SplitRows(tile.rows, tile.depth)
        self.a = shared(self.lies.length, "uint32")
        self.v = vector_of(program.shape, FRAGMENT)
        self.words = self.v // 4
        # A part of single bytes is many loads already: no more of them have registers at a time.
        self.unrolled = MOST_UNROLLED * self.v // FRAGMENT
        piece = ("uint32", self.words) if self.words else ("uint8", self.v)
        super().__init__(tile.rows * tile.depth, tile.threads, program.t, [piece] * (FRAGMENT // self.v))

    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """Elements of the input, as words where they are enough, and what stands for those outside of it."""
        program, (i, chunk) = self.program, self._place(part)
        first = T.bind((step * program.tile.depth + chunk) * FRAGMENT)
        values = []
        for piece in range(0, FRAGMENT, self.v):
            at = program.patch(i, first, piece)
            inside = all_of((*at.conditions, *program.within(step, chunk)))
            value = program.x[at.pixel, span(at.channel, self.v)]
            fill = T.cast(program.grid[0], "uint8")
            if self.words:
                value = T.reinterpret(value, dtype=vector("uint32", self.words))
                fill = T.cast(program.grid[0], "uint32") * T.uint32(_EACH)
            values.append(T.if_then_else(inside, value, spread(fill, self.words or self.v)))
        return values

    def store(self, part: Expr, values: list[Expr]) -> None:
        """The low halves of eight elements, their high ones, and the same of the other eight."""
        words = self._gathered(values)
        halves = []
        for even, odd in zip(words[:2], words[2:], strict=True):
            halves.append(_picked(even, T.bind(odd << T.uint32(4))))
            halves.append(_picked(even >> T.uint32(4), odd))
        four = tirx.Shuffle([T.bind(word) for word in halves], [T.int32(i) for i in range(4)])
        T.buffer_store(self.a, four, [T.ramp(self.lies.place(*self._place(part)), 1, 4)])

    def _gathered(self, values: list[Expr]) -> list[Expr]:
        """Words of what was loaded."""
        all_elements = [each for value in values for each in elements(value, self.words or self.v)]
        if self.words:
            return all_elements
        each = [T.cast(byte, "uint32") for byte in all_elements]
        return [_joined(each[first : first + 4]) for first in range(0, FRAGMENT, 4)]

    def _place(self, part: Expr) -> tuple[Expr, Expr]:
        depth = self.program.tile.depth
        return part // depth, part % depth


class _PackedStage(Stage):
    """``b``: weights as they are stored, but signed; zero in columns past the last. A part is a chunk of a column."""

    def __init__(self, program: _Int4Core) -> None:
        self.program, tile = program, program.tile
        self.lies = PackedColumns(tile.columns, tile.depth)
        self.b = shared(self.lies.length, "uint32")
        super().__init__(tile.columns * tile.depth, tile.threads, program.t, [("uint32", _WORDS)])

    def load(self, part: Expr, step: Expr) -> list[Expr]:
        """Two words, of codes and eight."""
        program, (block, chunk, column) = self.program, self._place(part)
        first = program.first_block + block
        at = T.bind(step * program.tile.depth + chunk)
        source = program.weight[program.g, first, at, 0, column, T.ramp(0, 1, 4 * _WORDS)]
        inside = all_of((first < program.blocks, *program.within(step, chunk)))
        value = T.reinterpret(source, dtype=vector("uint32", _WORDS))
        return [T.if_then_else(inside, value, spread(T.uint32(_SIGNS), _WORDS))]

    def store(self, part: Expr, values: list[Expr]) -> None:
        """As signed codes."""
        value = values[0] ^ spread(T.uint32(_SIGNS), _WORDS)
        T.buffer_store(self.b, value, [T.ramp(self.lies.place(*self._place(part)), 1, _WORDS)])

    def _place(self, part: Expr) -> tuple[Expr, Expr, Expr]:
        depth = self.program.tile.depth
        return part // (depth * FRAGMENT), part // FRAGMENT % depth, part % FRAGMENT


def _picked(low: Expr, high: Expr) -> Expr:
    """The low halves of one word's bytes and the high ones of another's; one LOP3."""
    return ((low ^ high) & T.uint32(_LOW)) ^ high


def _joined(four: list[Expr]) -> Expr:
    """Four bytes, the first lowest, as a word."""
    word = four[0]
    for i, byte in enumerate(four[1:], 1):
        word = word | (byte << T.uint32(8 * i))
    return T.bind(word)
