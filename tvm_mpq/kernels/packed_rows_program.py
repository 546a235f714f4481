"""The program of a multiplication of few rows by 4-bit codes, written out for one shape, instruction and tile.

    for row, step:  signed = x − 128;  correction = −Σ 8 · signed
    for task in parallel(tasks):
        for block of columns:  for panels of the block:
            for step:
                sum[row, panel] = correction + Σ (code + 8) · signed      (unpacked in registers)
                acc[row, panel] += sum (· factor of the group)
            add the bias, requantize and store

It is emitted with explicit vectors: what unpacks codes is no step that a schedule could tensorize.
"""

from __future__ import annotations

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.convolution import Output, activate
from tvm_mpq.kernels.emitting import argument, scratch, store_vector
from tvm_mpq.kernels.packed_rows import INPUT_OFFSET, PackedRowsGeometry, PackedRowsTile
from tvm_mpq.kernels.requantize import requantize_vector
from tvm_mpq.kernels.tensor_intrinsics import (
    NIBBLE_OFFSET,
    PMADDUBSW,
    PMADDWD,
    VPDPBUSD,
    call_llvm,
)

_CHUNK = 32
"""Activations that are made signed at a time."""
_CORRECTION_LANES = 4
"""Corrections are summed in vectors that every instruction set has."""
_AHEAD = 8192
"""Bytes that weights are asked for ahead: the processor's own guesses come too late for so few instructions a byte."""


def packed_rows(geometry: PackedRowsGeometry, out: Output, tile: PackedRowsTile) -> PrimFunc:
    """The kernel.

    Parameters, in order: x [rows, in_channels] uint8; packed weights uint8 [1, blocks, steps, words / 2, columns, 4];
    with groups their factors int8 [1, blocks, groups, columns]; bias int32 [1, blocks, columns], which makes up for
    activations less ``INPUT_OFFSET``; multiplier float32 [1, blocks, columns]; grid int32 [2] (input and output
    zero-point); then the output [rows, out_channels].
    """
    return _Program(geometry, out, tile).emit()


class _Program:
    def __init__(self, geometry: PackedRowsGeometry, out: Output, tile: PackedRowsTile) -> None:
        self.g, self.out, self.tile = geometry, out, tile
        self.dot, self.lanes = geometry.dot, geometry.dot.lanes
        self.halves = self.dot.family == "pmaddubsw"
        self.length = geometry.steps * geometry.step
        self.keys = [(row, panel) for row in range(geometry.rows) for panel in range(tile.panels)]

    def emit(self) -> PrimFunc:
        g, tile = self.g, self.tile
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            self.x = argument("x", (g.rows, g.in_channels), "uint8")
            self.weight = argument("weight", (1, g.blocks, g.steps, g.words // 2, g.columns, 4), "uint8")
            if g.group:
                groups = -(-g.in_channels // g.group)
                self.factor = argument("factor", (1, g.blocks, groups, g.columns), "int8")
            self.bias = argument("bias", (1, g.blocks, g.columns), "int32")
            self.multiplier = argument("multiplier", (1, g.blocks, g.columns), "float32")
            self.grid = argument("grid", (2,), "int32")
            self.result = argument("out", (g.rows, g.out_channels), self.out.dtype)
            self.signed = scratch(g.rows * self.length, "int8")
            self.correction = scratch(g.rows * g.steps, "int32")
            # Read from memory, so that LLVM keeps the loop: of one long block it does first all that it can of one
            # row or panel, which leaves the multipliers idle between.
            self.vectors = scratch(1, "int32")
            T.buffer_store(self.vectors, T.int32(g.words // 2), [0])
            with T.serial(0, g.rows) as row:
                self._sign(row)
            with T.serial(0, g.rows * g.steps) as at:
                self._correct(at)
            with T.parallel(0, g.blocks // tile.blocks) as task, T.serial(0, tile.blocks) as part:
                block = T.bind(task * tile.blocks + part)
                with T.serial(0, g.panels // tile.panels) as panels:
                    self._tile(block, T.bind(panels * (tile.panels * self.lanes)))
        return builder.get()

    def _sign(self, row: Expr) -> None:
        """Activations less 128; anything will do in the padding, where codes are zero."""
        whole, rest = divmod(self.g.in_channels, _CHUNK)
        flip = T.uint8(INPUT_OFFSET)
        with T.serial(0, whole) as chunk:
            value = self.x[row, T.ramp(chunk * _CHUNK, 1, _CHUNK)] ^ T.broadcast(flip, _CHUNK)
            to = T.ramp(row * self.length + chunk * _CHUNK, 1, _CHUNK)
            T.buffer_store(self.signed, T.reinterpret(value, dtype=f"int8x{_CHUNK}"), [to])
        with T.serial(0, rest) as i:
            value = T.reinterpret(self.x[row, whole * _CHUNK + i] ^ flip, dtype="int8")
            T.buffer_store(self.signed, value, [row * self.length + whole * _CHUNK + i])
        with T.serial(self.g.in_channels, self.length) as i:
            T.buffer_store(self.signed, T.int8(0), [row * self.length + i])

    def _correct(self, at: Expr) -> None:
        """−Σ 8 · signed of one step as its sums begin: one int32, or two int16 halves that may wrap around."""
        n = _CORRECTION_LANES
        eights = T.reinterpret(T.broadcast(T.int32(NIBBLE_OFFSET * 0x01010101), n), dtype=f"int8x{4 * n}")
        total = None
        for first in range(0, self.g.step, 4 * n):
            elements = self.signed[T.ramp(at * self.g.step + first, 1, 4 * n)]
            pairs = call_llvm(PMADDUBSW[n], f"int16x{2 * n}", eights, elements)
            total = pairs if total is None else total + pairs
        sums = scratch(2 * n, "int16")
        T.buffer_store(sums, total, [T.ramp(0, 1, 2 * n)])
        even, odd = (
            T.bind(sum((T.cast(sums[2 * i + half], "int32") for i in range(n)), T.int32(0)))
            for half in range(2)
        )
        if self.halves:
            low = T.bitwise_and(0 - even, T.int32(0xFFFF))
            value = T.bitwise_or(low, T.shift_left(0 - odd, T.int32(16)))
        else:
            value = 0 - even - odd
        T.buffer_store(self.correction, value, [at])

    def _tile(self, block: Expr, first: Expr) -> None:
        """All rows × the panels from column ``first`` of ``block`` on."""
        g, n = self.g, self.lanes
        acc = scratch(len(self.keys) * n, "int32")
        for key in self.keys:
            T.buffer_store(acc, T.broadcast(T.int32(0), n), [self._place(key, n)])
        with T.serial(0, g.steps) as step:
            sums = self._sums(block, first, step)
            factors = [self._factor(block, first + panel * n, step) for panel in range(self.tile.panels)]
            for row, panel in self.keys:
                where = self._place((row, panel), n)
                T.buffer_store(acc, acc[where] + self._widened(sums, (row, panel), factors[panel]), [where])
        for row, panel in self.keys:
            columns = T.ramp(first + panel * n, 1, n)
            value = acc[self._place((row, panel), n)] + self.bias[0, block, columns]
            scale = self.multiplier[0, block, columns]
            if self.out.dtype == "uint8":
                result = requantize_vector(value, scale, self.grid[1], n)
            else:
                result = activate(T.cast(value, f"float32x{n}") * scale, self.out)
            channel = T.bind(block * g.columns + first + panel * n)
            conditions = [channel < g.out_channels] if g.out_channels % g.columns else []
            store_vector(self.result, result, T.int32(row), channel, n, conditions)

    def _place(self, key: tuple[int, int], width: int) -> Expr:
        """Where the vector of a row and panel lies in a buffer of ``width`` elements each."""
        row, panel = key
        return T.ramp((row * self.tile.panels + panel) * width, 1, width)

    def _sums(self, block: Expr, first: Expr, step: Expr) -> Buffer:
        """Σ code · signed of a step for each row and panel, exact in int16 halves or int32."""
        g, n, panels = self.g, self.lanes, self.tile.panels
        width = 2 * n if self.halves else n
        sums = scratch(len(self.keys) * width, "int16" if self.halves else "int32")
        for row, panel in self.keys:
            start = T.broadcast(self.correction[row * g.steps + step], n)
            if self.halves:
                start = T.reinterpret(start, dtype=f"int16x{width}")
            T.buffer_store(sums, start, [self._place((row, panel), width)])
        with T.serial(0, self.vectors[0]) as vector:
            self._ask_ahead(block, first, step, vector)
            words = [[self._word(row, step, 2 * vector + half) for half in range(2)] for row in range(g.rows)]
            # Two panels at a time: neighbouring instructions then wait less for each other.
            for pair in range(0, panels, 2):
                both = range(pair, min(pair + 2, panels))
                raw = [T.bind(self._raw(block, first + panel * n, step, vector)) for panel in both]
                codes = [[T.bind(self._codes(each, half)) for each in raw] for half in range(2)]
                for row in range(g.rows):
                    for half in range(2):
                        for panel, each in zip(both, codes[half], strict=True):
                            where = self._place((row, panel), width)
                            T.buffer_store(sums, self._dot(sums[where], each, words[row][half]), [where])
        return sums

    def _ask_ahead(self, block: Expr, first: Expr, step: Expr, vector: Expr) -> None:
        """Prefetch what this iteration reads, ``_AHEAD`` bytes further on; past the last weight that does nothing."""
        line = 64
        ahead = _AHEAD // (4 * self.g.columns)
        for at in range(0, 4 * self.lanes * self.tile.panels, line):
            address = T.address_of(self.weight[0, block, step, vector + ahead, first + at // 4, 0])
            read, every_cache, data = T.int32(0), T.int32(3), T.int32(1)
            prefetch = T.llvm_lookup_intrinsic_id("llvm.prefetch")
            T.evaluate(T.call_llvm_intrin(prefetch, address, read, every_cache, data, dtype="void"))

    def _raw(self, block: Expr, column: Expr, step: Expr, vector: Expr) -> Expr:
        return self.weight.vload([0, block, step, vector, column, 0], f"uint8x{4 * self.lanes}")

    def _word(self, row: int, step: Expr, word: Expr) -> Expr:
        """A word of activations in every lane."""
        at = row * self.length + step * self.g.step + word * 4
        return T.bind(T.broadcast(T.reinterpret(self.signed[T.ramp(at, 1, 4)], dtype="int32"), self.lanes))

    def _codes(self, raw: Expr, half: int) -> Expr:
        """The low or the high nibble of every byte; there is no shift of bytes, so pairs are shifted."""
        count = 2 * self.lanes
        pairs = T.reinterpret(raw, dtype=f"uint16x{count}")
        if half:
            pairs = T.shift_right(pairs, T.broadcast(T.uint16(4), count))
        return T.bitwise_and(pairs, T.broadcast(T.uint16(0x0F0F), count))

    def _dot(self, total: Expr, codes: Expr, word: Expr) -> Expr:
        n = self.lanes
        signed = T.reinterpret(word, dtype=f"int8x{4 * n}")
        if not self.halves:
            unsigned = T.reinterpret(codes, dtype=f"uint8x{4 * n}")
            return call_llvm(VPDPBUSD[n], f"int32x{n}", total, unsigned, signed)
        unsigned = T.reinterpret(codes, dtype=f"int8x{4 * n}")
        return total + call_llvm(PMADDUBSW[n], f"int16x{2 * n}", unsigned, signed)

    def _factor(self, block: Expr, column: Expr, step: Expr) -> Expr | None:
        """The factor of the step's group in each lane, int32; in both its halves where sums are halves."""
        if not self.g.group:
            return None
        n = self.lanes
        group = step // (self.g.group // self.g.step)
        value = T.bind(T.cast(self.factor[0, block, group, T.ramp(column, 1, n)], f"int32x{n}"))
        if not self.halves:
            return value
        return T.bind(T.bitwise_or(value, T.shift_left(value, T.broadcast(T.int32(16), n))))

    def _widened(self, sums: Buffer, key: tuple[int, int], factor: Expr | None) -> Expr:
        n = self.lanes
        if not self.halves:
            total = sums[self._place(key, n)]
            return total if factor is None else total * factor
        pairs = f"int16x{2 * n}"
        by = T.broadcast(T.int16(1), 2 * n) if factor is None else T.reinterpret(factor, dtype=pairs)
        return call_llvm(PMADDWD[n], f"int32x{n}", sums[self._place(key, 2 * n)], by)
