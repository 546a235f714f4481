"""Products of 8-bit activations and 4-bit weights by int4 tensor cores: what a warp does with its part of a tile.

An activation less 128 is 16·h + l, h signed and l unsigned, four bits each. So x·w = 16·(h·w) + l·w: two products of
four bits whose sums stay apart to the end of the reduction, exact in int32 as those of int8 are.

``mma.sync.aligned.m16n8k64`` (PTX ISA, "Matrix fragments for mma.m16n8k64") has no order of its own along the reduction
but that both factors have the same: a lane takes a chunk, 16 neighbours, of a row or column, as two words of eight.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

from tvm_mpq.kernels.cuda.tile import FRAGMENT, WARP, CudaTile

CHUNKS = 4
"""So many chunks of the reduction, one a lane of four, are multiplied at once."""
_PAD = 16
"""Words that keep what is written to the left factor at a time from meeting in the same banks of shared memory."""
_COLUMNS = 8
"""Of one instruction; a fragment has two of them."""
_SPREAD = _COLUMNS + 2
"""Places of a chunk's columns, so that the four chunks of a product are in different banks."""
_SUMS = 4
"""That a lane has of an instruction's 16 × 8: two neighbours of row lane / 4, and two of the row eight below."""

_FUNCTION = """
#ifdef __CUDACC__
static __device__ __forceinline__ void {name}(
    int* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {{
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.{left}.s4.s32 {{%0, %1, %2, %3}}, {{%4, %5, %6, %7}}, {{%8, %9}}, {{%0, %1, %2, %3}};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}}
#else
#include "mma_sync.h"
#endif
"""
"""A warp adds the product of 16 × 64 (``left``: s4 or u4) and 64 × 8 to its sums. Emulated, it is of that header."""


@dataclass(frozen=True)
class SplitRows:
    """How the left factor lies in shared memory: for each row and chunk four words, the low halves and the high ones."""

    rows: int
    depth: int

    @property
    def length(self) -> int:
        """Words in all."""
        return self.depth // CHUNKS * self._stride

    @property
    def _stride(self) -> int:
        return self.rows * CHUNKS * 4 + _PAD

    def place(self, row: Expr, chunk: Expr) -> Expr:
        """The first of the four words."""
        return chunk // CHUNKS * self._stride + (row * CHUNKS + chunk % CHUNKS) * 4


@dataclass(frozen=True)
class PackedColumns:
    """How the right factor lies: for each column and chunk two words, those of columns eight apart side by side."""

    columns: int
    depth: int

    @property
    def length(self) -> int:
        """Words in all."""
        return self.columns // FRAGMENT * self.depth * _SPREAD * 4

    def place(self, block: Expr, chunk: Expr, column: Expr) -> Expr:
        """The first of the two words of a column of a block of 16; for the first eight columns, of the four."""
        return ((block * self.depth + chunk) * _SPREAD + column % _COLUMNS) * 4 + column // _COLUMNS * 2


class Int4Product:
    """The sums of the fragments that are the warp's part of a tile; they begin as zero."""

    def __init__(self, tile: CudaTile, thread: Expr) -> None:
        self.rows, self.columns = tile.fragments
        self.depth = tile.depth
        warp, lane = thread // WARP, thread % WARP
        self.row = warp // tile.warp_columns * (self.rows * FRAGMENT) + lane // 4
        self.block = warp % tile.warp_columns * self.columns
        self.lane = lane
        count = self.rows * self.columns * 2 * _SUMS
        self.high, self.low = (T.alloc_buffer((count,), "int32", scope="local", layout=None) for _ in "hl")
        for sums in (self.high, self.low):
            with T.unroll(0, count) as i:
                T.buffer_store(sums, T.int32(0), [i])

    def add(self, a: Buffer, left: SplitRows, b: Buffer, right: PackedColumns) -> None:
        """The product of what the block staged."""
        for first in range(0, self.depth, CHUNKS):
            chunk = first + self.lane % 4
            columns = [
                _words(b, right.place(self.block + j, chunk, self.lane // 4)) for j in range(self.columns)
            ]
            for i in range(self.rows):
                upper, lower = (
                    _words(a, left.place(self.row + i * FRAGMENT + below, chunk)) for below in (0, 8)
                )
                for j, column in enumerate(columns):
                    for half in range(2):
                        at = self._place(i, j, half)
                        for sums, name, word in ((self.low, "u4", 0), (self.high, "s4", 2)):
                            factors = [upper[word], lower[word], upper[word + 1], lower[word + 1]]
                            _multiply(name, sums, at, [*factors, *column[2 * half : 2 * half + 2]])

    def store(self, c: Buffer, stride: int) -> None:
        """The sums, to the block's matrix ``c`` with rows ``stride`` apart."""
        column = self.block * FRAGMENT + self.lane % 4 * 2
        for i in range(self.rows):
            for j in range(self.columns):
                for half in range(2):
                    for below in range(2):
                        at = self._place(i, j, half) + 2 * below
                        row = self.row + i * FRAGMENT + 8 * below
                        pair = [T.ramp(at, 1, 2)]
                        value = self.high[pair] * T.broadcast(T.int32(16), 2) + self.low[pair]
                        where = row * stride + column + j * FRAGMENT + half * _COLUMNS
                        T.buffer_store(c, value, [T.ramp(where, 1, 2)])

    def _place(self, i: int, j: int, half: int) -> int:
        return ((i * self.columns + j) * 2 + half) * _SUMS


def _words(buffer: Buffer, at: Expr) -> list[Expr]:
    """Four words from ``at`` on, by one load."""
    four = T.bind(buffer[T.ramp(at, 1, 4)])
    return [tirx.Shuffle([four], [T.int32(i)]) for i in range(4)]


def _multiply(left: str, sums: Buffer, at: int, words: list[Expr]) -> None:
    name = f"mma_m16n8k64_{left}"
    source = _FUNCTION.format(name=name, left=left)
    T.evaluate(T.cuda.func_call(name, sums.access_ptr("rw", offset=at), *words, source_code=source))
