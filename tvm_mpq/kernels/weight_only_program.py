"""The program of a weight-only matrix multiplication, written out for one shape, instruction and tile.

    for row:  cut the row into blocks of 32, each an exponent, three digits an element, and offset · Σ v
    for task in parallel(row tasks × column tasks):
        for column block:  for row tile:
            for block of 32:
                unpack weights in registers;  acc[row, vector, digit] += digits · weights     (exact integers)
                sum[row, vector] += (acc combined − correction) · 2^e · multiplier            (floats)
            scale, add the bias, activate and store the tile

It is emitted with explicit vectors: what unpacks codes is no step that a schedule could tensorize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels import neon
from tvm_mpq.kernels.convolution import Output, activate
from tvm_mpq.kernels.emitting import argument, scratch, store_vector
from tvm_mpq.kernels.tensor_intrinsics import PMADDUBSW, PMADDWD, VPDPBUSD, call_llvm
from tvm_mpq.kernels.weight_only import BLOCK, DIGITS, WeightOnlyGeometry, WeightOnlyTile

_QUADS = BLOCK // 4
_UNROLL = 2
"""Vectors of weights loaded in an iteration of the innermost loop."""
_MAGIC = 12582912.0
"""1.5 · 2^23: added to a float below 2^22 it leaves the nearest integer in the low bits."""
_MAGIC_BITS = 0x4B400000
_BIAS = 0x808080
"""Adding it makes the bytes of v unsigned digits; flipping their sign bits makes them signed."""
_EXPONENT = 0x7F800000
_LEAST_EXPONENT = 27 << 23
"""2^-100: blocks of smaller elements are scaled as if one of this size were among them."""
_PARALLEL_ELEMENTS = 32768
"""Below this many activations, waking the other threads to cut them costs more than it saves."""


def weight_only(geometry: WeightOnlyGeometry, out: Output, tile: WeightOnlyTile) -> PrimFunc:
    """The kernel.

    Parameters, in order: x [rows, in_channels] float32; packed weights uint8 (``weight_shape``); with groups their
    multipliers uint8 (``multiplier_shape``); scale and bias [blocks, columns] float32; then the output
    [rows, out_channels] float32.
    """
    return _Program(geometry, out, tile).emit()


class _Program:
    def __init__(self, geometry: WeightOnlyGeometry, out: Output, tile: WeightOnlyTile) -> None:
        self.g, self.out, self.tile = geometry, out, tile
        self.dot, self.lanes = geometry.dot, geometry.dot.lanes
        self.tiles = -(-geometry.rows // tile.rows)

    def emit(self) -> PrimFunc:
        g, tile = self.g, self.tile
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            self.x = argument("x", (g.rows, g.in_channels), "float32")
            self.weight = argument("weight", g.weight_shape, "uint8")
            if g.group:
                self.multiplier = argument("multiplier", g.multiplier_shape, "uint8")
            self.scale = argument("scale", (g.blocks, g.columns), "float32")
            self.bias = argument("bias", (g.blocks, g.columns), "float32")
            self.result = argument("out", (g.rows, g.out_channels), "float32")
            padded_rows = self.tiles * tile.rows
            self.digits = scratch(padded_rows * g.steps * DIGITS * BLOCK, "int8")
            self.correction = scratch(padded_rows * g.steps, "int32")
            self.power = scratch(padded_rows * g.steps, "float32")
            # Read from memory, so that LLVM keeps the loop: in one long block its scheduler does first all of one
            # vector and then all of the other, and spills what they share.
            self.loads = scratch(1, "int32")
            T.buffer_store(self.loads, T.int32(_QUADS * 2 // (8 // g.bits) // _UNROLL), [0])
            loop = T.parallel if g.rows * g.in_channels > _PARALLEL_ELEMENTS and g.rows > 1 else T.serial
            with loop(0, g.rows) as row:
                self._cut_row(row)
            row_tasks = -(-self.tiles // tile.row_tiles)
            with T.parallel(0, row_tasks * (g.blocks // tile.column_blocks)) as task:
                first_tile = T.bind(task % row_tasks * tile.row_tiles)
                count = T.bind(T.min(tile.row_tiles, self.tiles - first_tile))
                with T.serial(0, tile.column_blocks) as column, T.serial(0, count) as row_tile:
                    block = T.bind(task // row_tasks * tile.column_blocks + column)
                    self._tile(block, (first_tile + row_tile) * tile.rows)
        return builder.get()

    def _cut_row(self, row: Expr) -> None:
        whole, rest = divmod(self.g.in_channels, BLOCK)
        with T.serial(0, whole) as step:
            vectors = [
                T.bind(self.x[row, T.ramp(step * BLOCK + at, 1, self.lanes)])
                for at in range(0, BLOCK, self.lanes)
            ]
            self._cut_block(row, step, vectors)
        if rest:
            last = scratch(BLOCK, "float32")
            with T.serial(0, rest) as i:
                T.buffer_store(last, self.x[row, whole * BLOCK + i], [i])
            with T.serial(rest, BLOCK) as i:
                T.buffer_store(last, T.float32(0), [i])
            vectors = [T.bind(last[T.ramp(at, 1, self.lanes)]) for at in range(0, BLOCK, self.lanes)]
            self._cut_block(row, whole, vectors)

    def _cut_block(self, row: Expr, step: Expr | int, vectors: Sequence[Expr]) -> None:
        """Exponent, digits and correction of one block of a row, whose elements are ``vectors``."""
        n = self.lanes
        integers = f"int32x{n}"
        largest = None
        for x in vectors:
            magnitude = T.bitwise_and(T.reinterpret(x, dtype=integers), T.broadcast(T.int32(0x7FFFFFFF), n))
            largest = magnitude if largest is None else T.max(largest, magnitude)
        highest = T.bind(_reduce("smax", largest))
        exponent = T.bind(T.max(T.bitwise_and(highest, T.int32(_EXPONENT)), T.int32(_LEAST_EXPONENT)))
        # 2^(21 − e) and 2^(e − 21), by their bits.
        inverse = T.reinterpret(
            T.uint32(275 << 23) - T.reinterpret(exponent, dtype="uint32"), dtype="float32"
        )
        power = T.reinterpret(exponent - T.int32(21 << 23), dtype="float32")
        nan = T.reinterpret(T.int32(0x7FC00000), dtype="float32")
        at = T.bind(row * self.g.steps + step)
        T.buffer_store(self.power, T.Select(exponent == T.int32(_EXPONENT), nan, power), [at])
        scale = T.bind(T.broadcast(inverse, n))
        total = None
        for index, x in enumerate(vectors):
            rounded = x * scale + T.broadcast(T.float32(_MAGIC), n)
            v = T.bind(T.reinterpret(rounded, dtype=integers) - T.broadcast(T.int32(_MAGIC_BITS), n))
            total = v if total is None else total + v
            bias = T.broadcast(T.int32(_BIAS), n)
            digits = T.bind(T.bitwise_xor(v + bias, bias))
            for digit in range(DIGITS):
                place = (at * DIGITS + digit) * BLOCK + index * n
                value = T.shift_right(digits, T.broadcast(T.int32(8 * digit), n))
                T.buffer_store(self.digits, T.cast(value, f"int8x{n}"), [T.ramp(place, 1, n)])
        T.buffer_store(self.correction, _reduce("add", total) * self.g.offset, [at])

    def _tile(self, block: Expr, first: Expr) -> None:
        g, n, rows = self.g, self.lanes, self.tile.rows
        sums = scratch(rows * g.columns, "float32")
        places = [
            (row, vector, T.ramp((row * 2 + vector) * n, 1, n)) for row in range(rows) for vector in range(2)
        ]
        for _, _, place in places:
            T.buffer_store(sums, T.broadcast(T.float32(0), n), [place])
        with T.serial(0, g.steps) as step:
            acc = self._products(block, first, step)
            multipliers = [self._multiplier(block, step, vector) for vector in range(2)]
            for row, vector, place in places:
                at = (first + row) * g.steps + step
                total = self._combine([acc(row, vector, digit) for digit in range(DIGITS)])
                total = total - T.broadcast(self.correction[at], n)
                factor = T.broadcast(self.power[at], n)
                if g.group:
                    factor = factor * multipliers[vector]
                T.buffer_store(sums, sums[place] + T.cast(total, f"float32x{n}") * factor, [place])
        for row, vector, place in places:
            columns = T.ramp(vector * n, 1, n)
            value = sums[place] * self.scale[block, columns] + self.bias[block, columns]
            conditions = [first + row < g.rows] if g.rows % rows else []
            channel = T.bind(block * g.columns + vector * n)
            if g.out_channels % g.columns:
                conditions.append(channel < g.out_channels)
            store_vector(self.result, activate(value, self.out), first + row, channel, n, conditions)

    def _multiplier(self, block: Expr, step: Expr, vector: int) -> Expr | None:
        if not self.g.group:
            return None
        codes = self.multiplier[
            block, step // (self.g.group // BLOCK), T.ramp(vector * self.lanes, 1, self.lanes)
        ]
        return T.bind(T.cast(T.cast(codes, f"int32x{self.lanes}"), f"float32x{self.lanes}"))

    def _products(self, block: Expr, first: Expr, step: Expr) -> Callable[[int, int, int], Expr]:
        """Accumulate a block of 32; gives the accumulator of a row, vector and digit."""
        g, n, rows = self.g, self.lanes, self.tile.rows
        dtype, width = self.dot.accumulator, n if self.dot.accumulator == "int32" else 2 * n
        acc = scratch(rows * 2 * DIGITS * width, dtype)

        def place(row: int, vector: int, digit: int) -> Expr:
            return T.ramp(((row * 2 + vector) * DIGITS + digit) * width, 1, width)

        codes = 8 // g.bits
        keys = [(row, vector, digit) for row in range(rows) for vector in range(2) for digit in range(DIGITS)]
        for key in keys:
            T.buffer_store(acc, T.broadcast(T.cast(0, dtype), width), [place(*key)])
        with T.serial(0, self.loads[0]) as outer:
            for inner in range(_UNROLL):
                load = outer * _UNROLL + inner
                raw = T.bind(self.weight[block, step, T.ramp(load * 4 * n, 1, 4 * n)])
                for pair in range(codes // 2):
                    quad = load * (codes // 2) + pair
                    weights = [T.bind(self._unpack(raw, 2 * pair + vector)) for vector in range(2)]
                    for row in range(rows):
                        for digit in range(DIGITS):
                            at = (((first + row) * g.steps + step) * DIGITS + digit) * BLOCK + 4 * quad
                            word = T.reinterpret(self.digits[T.ramp(at, 1, 4)], dtype="int32")
                            digits = T.bind(T.broadcast(word, n))
                            for vector in range(2):
                                where = place(row, vector, digit)
                                T.buffer_store(acc, self._dot(acc[where], weights[vector], digits), [where])
        return lambda row, vector, digit: acc[place(row, vector, digit)]

    def _unpack(self, raw: Expr, index: int) -> Expr:
        """Code ``index`` of every byte, as bytes."""
        bits, bytes_ = self.g.bits, 4 * self.lanes
        words = T.reinterpret(raw, dtype=f"uint16x{bytes_ // 2}")
        if index:
            words = T.shift_right(words, T.broadcast(T.uint16(bits * index), bytes_ // 2))
        mask = (2**bits - 1) * 0x0101
        return T.bitwise_and(words, T.broadcast(T.uint16(mask), bytes_ // 2))

    def _dot(self, accumulator: Expr | None, weights: Expr, digits: Expr) -> Expr:
        n = self.lanes
        if self.dot.family == "vpdpbusd":
            old = T.broadcast(T.int32(0), n) if accumulator is None else accumulator
            return call_llvm(
                VPDPBUSD[n],
                f"int32x{n}",
                old,
                T.reinterpret(weights, dtype=f"uint8x{4 * n}"),
                T.reinterpret(digits, dtype=f"int8x{4 * n}"),
            )
        if self.dot.family != "pmaddubsw":
            old = T.broadcast(T.int32(0), n) if accumulator is None else accumulator
            weights, digits = (T.reinterpret(each, dtype=f"int8x{4 * n}") for each in (weights, digits))
            return neon.dot(self.dot.family, old, digits, weights)
        product = call_llvm(
            PMADDUBSW[n],
            f"int16x{2 * n}",
            T.reinterpret(weights, dtype=f"int8x{4 * n}"),
            T.reinterpret(digits, dtype=f"int8x{4 * n}"),
        )
        return product if accumulator is None else accumulator + product

    def _combine(self, acc: Sequence[Expr]) -> Expr:
        """Σ 2^(8 i) · acc_i as int32."""
        n = self.lanes
        if self.dot.accumulator == "int32":
            low, middle, high = acc
            middle = T.shift_left(middle, T.broadcast(T.int32(8), n))
        else:
            low, middle, high = (
                call_llvm(PMADDWD[n], f"int32x{n}", value, T.broadcast(T.int16(factor), 2 * n))
                for value, factor in zip(acc, (1, 256, 1), strict=True)
            )
        return low + middle + T.shift_left(high, T.broadcast(T.int32(16), n))


def _reduce(operation: str, vector: Expr) -> Expr:
    return call_llvm(f"llvm.vector.reduce.{operation}", "int32", vector)
