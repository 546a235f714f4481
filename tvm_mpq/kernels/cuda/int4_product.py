"""Products of 8-bit activations and 4-bit weights by int4 tensor cores: what a warp does with its part of a tile.

An activation is 16·h + l, four unsigned bits each, so x·w = 16·(h·w) + l·w: two products of four bits, whose sums stay
apart to the end of the reduction, exact in int32. ``mma.sync.aligned.m16n8k64`` (PTX ISA, "Matrix fragments for
mma.m16n8k64") multiplies 16 rows, and gives a lane the sums of row lane / 4 and of the one eight below: here these are
the low and the high halves of one row of activations, so that an instruction makes eight rows of results.

It has no order of its own along the reduction but that both factors have the same: a lane takes a chunk, 16 neighbours,
of a row or column, as two words of eight. Nor has it along the columns: of 16 even ones are of one instruction and odd
ones of another, so that a lane loads the weights of both at once, and has four neighbours of the results.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr

from tvm_mpq.kernels.cuda.tile import FRAGMENT, WARP, CudaTile
from tvm_mpq.kernels.cuda.words import elements

CHUNKS = 4
"""So many chunks of the reduction, one a lane of four, are multiplied at once."""
_PAD = 16
"""Words that keep what is written to the left factor at a time from meeting in the same banks of shared memory."""
_ROWS = _COLUMNS = 8
"""Of one instruction's results; a fragment has two times two of them."""
_SPREAD = _COLUMNS + 2
"""Places of a chunk's columns, so that the four chunks of a product are in different banks."""
_SUMS = 4
"""That a lane has of an instruction: of two neighbours those of the low halves, and those of the high ones."""

NAME = "mma_m16n8k64_u4_s4"
FUNCTION = """
#ifdef __CUDACC__
#if __CUDA_ARCH__ < 800
static __device__ __forceinline__ void mma_m8n8k32_u4_s4(int* d, unsigned a, unsigned b) {
  asm volatile("mma.sync.aligned.m8n8k32.row.col.s32.u4.s4.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
               : "+r"(d[0]), "+r"(d[1]) : "r"(a), "r"(b));
}
#endif
static __device__ __forceinline__ void mma_m16n8k64_u4_s4(
    int* d, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#else
  mma_m8n8k32_u4_s4(d, a0, b0);
  mma_m8n8k32_u4_s4(d, a2, b1);
  mma_m8n8k32_u4_s4(d + 2, a1, b0);
  mma_m8n8k32_u4_s4(d + 2, a3, b1);
#endif
}
#else
#include "mma_sync.h"
#endif
"""
"""A warp adds the product of 16 × 64 unsigned and 64 × 8 signed numbers to its sums. Emulated, it is of that header.

Turing multiplies 8 × 32 by 32 × 8; lanes have the same words of them (PTX ISA, "Matrix fragments for mma.m8n8k32").
"""


def padded(steps: int, depth: int = CHUNKS) -> int:
    """Chunks of the reduction, a multiple of ``depth``, that ``steps`` of them become."""
    return -(-steps // depth) * depth


@dataclass(frozen=True)
class SplitRows:
    """How the left factor lies in shared memory: for each row and chunk four words, low and high halves in turn."""

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
    """How the right factor lies: for each chunk and column of a block of 16 two words."""

    columns: int
    depth: int

    @property
    def length(self) -> int:
        """Words in all."""
        return self.columns // FRAGMENT * self.depth * _SPREAD * 4

    def place(self, block: Expr, chunk: Expr, column: Expr) -> Expr:
        """The first of the two words."""
        return (block * self.depth + chunk) * (4 * _SPREAD) + column * 2


class Int4Product:
    """The sums of the fragments that are the warp's part of a tile; they begin as zero."""

    def __init__(self, tile: CudaTile, thread: Expr) -> None:
        self.rows, self.columns = tile.fragments
        self.depth = tile.depth
        warp, self.lane = thread // WARP, thread % WARP
        self.row = warp // tile.warp_columns * (self.rows * FRAGMENT) + self.lane // 4
        self.block = warp % tile.warp_columns * self.columns
        count = self.rows * self.columns * 2 * 2 * _SUMS
        self.sums = T.alloc_buffer((count,), "int32", scope="local", layout=None)
        with T.unroll(0, count) as i:
            T.buffer_store(self.sums, T.int32(0), [i])

    def add(self, a: Buffer, left: SplitRows, b: Buffer, right: PackedColumns) -> None:
        """The product of what the block staged."""
        for first in range(0, self.depth, CHUNKS):
            chunk = first + self.lane % 4
            columns = [
                _words(b, right.place(self.block + j, chunk, self.lane // 4 * 2)) for j in range(self.columns)
            ]
            for i in range(2 * self.rows):
                row = _words(a, left.place(self.row + i * _ROWS, chunk))
                for j in range(2 * self.columns):
                    words = [*row, *columns[j // 2][j % 2 * 2 :][:2]]
                    sums = self.sums.access_ptr("rw", offset=self._place(i, j))
                    T.evaluate(T.cuda.func_call(NAME, sums, *words, source_code=FUNCTION))

    def store(self, c: Buffer, stride: int) -> None:
        """The sums, to the block's matrix ``c`` with rows ``stride`` apart."""
        column = self.block * FRAGMENT + self.lane % 4 * 4
        for i in range(2 * self.rows):
            for j in range(self.columns):
                # Neighbours are of the two instructions in turn.
                places = [self._place(i, 2 * j + odd) + pair for pair in range(2) for odd in range(2)]
                totals = [T.bind(self.sums[at + 2] * 16 + self.sums[at]) for at in places]
                four = tirx.Shuffle(totals, [T.int32(place) for place in range(4)])
                where = (self.row + i * _ROWS) * stride + column + j * FRAGMENT
                T.buffer_store(c, four, [T.ramp(where, 1, 4)])

    def _place(self, i: int, j: int) -> int:
        return (i * 2 * self.columns + j) * _SUMS


def _words(buffer: Buffer, at: Expr) -> list[Expr]:
    """Four words from ``at`` on, by one load."""
    return elements(T.bind(buffer[T.ramp(at, 1, 4)]), 4)
