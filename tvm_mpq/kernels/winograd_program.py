"""The program of Winograd's F(2×2, 3×3) and F(2×4, 3×3), written out for one shape, instruction and tile.

    padded = x less its zero-point, 0 around it
    for task in parallel(column tasks × tile blocks):
        transform the inputs of the block's tiles            (or once for all tasks, before)
        for column block of the task:
            transform the column block's weights             (or once for all tasks, before)
            for p in 16 or 24:  for row tile:
                for k (unrolled):  acc[rows, vectors] += …   (registers)
            transform the results back, finish and store them

It is emitted with explicit vectors: no schedule keeps a tile of transformed vectors in registers between two blocks.
"""

from __future__ import annotations

from typing import TypeAlias

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.convolution import ConvolutionShape, Output, activate
from tvm_mpq.kernels.emitting import When, argument, scratch, store_vector
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.narrow_weights import stored_dtype, widened
from tvm_mpq.kernels.requantize import requantize_vector
from tvm_mpq.kernels.tensor_intrinsics import NIBBLE_OFFSET, multiply_accumulate
from tvm_mpq.kernels.winograd import SHIFT, THIRD, WinogradGeometry, WinogradTile
from tvm_mpq.kernels.winograd_transforms import transform_input, transform_output, transform_weights

Index: TypeAlias = int | Expr


def winograd(
    shape: ConvolutionShape, in_dtype: str, out: Output, intrinsic: Intrinsic, tile: WinogradTile
) -> PrimFunc:
    """The kernel; it computes what ``convolution`` computes, for integers bit for bit.

    Parameters, in order: x [N·H·W, C] of ``in_dtype``; packed weights (``WinogradGeometry.weight_shape``);
    bias [1, blocks, block] of the accumulator's dtype; for int8 weights multiplier [1, blocks, block] float32, and
    for integer inputs grid int32[2] (input and output zero-point); then the output [rows, out_channels].
    """
    return _Program(WinogradGeometry(shape, intrinsic, tile.across), in_dtype == "uint8", out, tile).emit()


class _Program:
    """Emits the parts in order. Buffers are flat, p's stride padded: its streams spread over the cache."""

    def __init__(self, geometry: WinogradGeometry, integer: bool, out: Output, tile: WinogradTile) -> None:
        self.g, self.integer, self.out, self.tile = geometry, integer, out, tile
        self.data = geometry.intrinsic.activation
        # Integer results are right modulo 2^32, and unsigned sums may wrap.
        self.sum = "uint32" if integer else geometry.intrinsic.accumulator
        self.width, self.lanes = geometry.vector, geometry.intrinsic.lanes
        self.tile_blocks = -(-geometry.tiles // tile.tiles)
        self.points, self.span = geometry.points, tile.across + 2
        self.height = 2 * geometry.tile_rows + 2
        self.breadth = tile.across * geometry.tile_columns + 2
        line = 32 if integer else 16
        self.v_stride = tile.tiles * geometry.channels + line
        self.u_stride = geometry.channels * geometry.block + line
        self.m_stride = tile.tiles * geometry.block

    def emit(self) -> PrimFunc:
        g, shape, tile = self.g, self.g.shape, self.tile
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            x_dtype = "uint8" if self.integer else "float32"
            weight_dtype = "int8" if self.integer else stored_dtype(g.intrinsic.weight)
            self.scaled = weight_dtype == "int8"
            if g.intrinsic.nibbles:
                weight_dtype = "uint8"
            pixels = shape.batch * shape.height * shape.width
            self.x = argument("x", (pixels, shape.in_channels), x_dtype)
            self.weight = argument("weight", g.weight_shape, weight_dtype)
            self.bias = argument("bias", (1, g.blocks, g.block), g.intrinsic.accumulator)
            if self.scaled:
                self.multiplier = argument("multiplier", (1, g.blocks, g.block), "float32")
            if self.integer:
                self.grid = argument("grid", (2,), "int32")
            self.result = argument("out", (shape.rows, shape.out_channels), self.out.dtype)
            self.padded = scratch(shape.batch * self.height * self.breadth * g.channels, self.data)
            self._pad()
            if tile.transform_whole:
                v = scratch(self.tile_blocks * self.points * self.v_stride, self.data)
                with T.parallel(0, self.tile_blocks * tile.tiles) as at:
                    self._transform_tile(
                        v, at // tile.tiles, at % tile.tiles, at // tile.tiles * (self.points * self.v_stride)
                    )
            if tile.expand_whole:
                u = scratch(g.blocks * self.points * self.u_stride, self.data)
                with T.parallel(0, g.blocks) as block:
                    self._expand(u, block, block * (self.points * self.u_stride))
            with T.parallel(0, g.blocks // tile.columns * self.tile_blocks) as task:
                tiles_at = T.bind(task % self.tile_blocks)
                v_base: Index = 0
                if tile.transform_whole:
                    v_base = T.bind(tiles_at * (self.points * self.v_stride))
                else:
                    v = scratch(self.points * self.v_stride, self.data)
                    with T.serial(0, tile.tiles) as t:
                        self._transform_tile(v, tiles_at, t, 0)
                m = scratch(self.points * self.m_stride, self.sum)
                if not tile.expand_whole:
                    u = scratch(self.points * self.u_stride, self.data)
                with T.serial(0, tile.columns) as column:
                    block = T.bind(task // self.tile_blocks * tile.columns + column)
                    u_base: Index = 0
                    if tile.expand_whole:
                        u_base = T.bind(block * (self.points * self.u_stride))
                    else:
                        self._expand(u, block, 0)
                    with T.serial(0, self.points) as p, T.serial(0, tile.tiles // tile.rows) as row:
                        self._multiply(v, u, m, p, row * tile.rows, v_base, u_base)
                    with T.serial(0, tile.tiles) as t:
                        self._finish_tile(m, tiles_at, t, block)
        return builder.get()

    def _pad(self) -> None:
        g, shape = self.g, self.g.shape
        top, left = shape.padding[:2]
        row_length = self.breadth * g.channels
        columns = min(shape.width, self.breadth - left)
        whole = shape.in_channels == g.channels
        with T.parallel(0, shape.batch * self.height) as at:
            row, base = T.bind(at % self.height - top), T.bind(at * row_length)
            with T.If(T.And(row >= 0, row < shape.height)):
                with T.Then():
                    pixel = T.bind((at // self.height * shape.height + row) * shape.width)
                    self._zeros(base, left * g.channels)
                    with T.serial(0, columns) as w:
                        if whole:
                            with T.serial(0, g.channels // self.width) as c, T.vectorized(0, self.width) as i:
                                channel = c * self.width + i
                                to = base + (w + left) * g.channels + channel
                                _store(self.padded, to, self._shifted(pixel + w, channel))
                        else:
                            to = T.bind(base + (w + left) * g.channels)
                            with T.serial(0, shape.in_channels) as channel:
                                _store(self.padded, to + channel, self._shifted(pixel + w, channel))
                            with T.serial(shape.in_channels, g.channels) as channel:
                                _store(self.padded, to + channel, T.cast(0, self.data))
                    right = (left + columns) * g.channels
                    self._zeros(base + right, row_length - right)
                with T.Else():
                    self._zeros(base, row_length)

    def _shifted(self, pixel: Expr, channel: Expr) -> Expr:
        value = self.x[pixel, channel]
        if not self.integer:
            return value
        return T.cast(value, "int16") - T.cast(self.grid[0], "int16")

    def _zeros(self, base: Expr, length: int) -> None:
        zero = T.broadcast(T.cast(0, self.data), self.width)
        with T.serial(0, length // self.width) as i:
            _store(self.padded, T.ramp(base + i * self.width, 1, self.width), zero)

    def _transform_tile(self, v: Buffer, tiles_at: Expr, t: Expr, v_base: Index) -> None:
        """V[p, t, :] of one tile; tiles past the last are the last one again, and are not stored later."""
        g = self.g
        n, h, w = self._position(T.min(tiles_at * self.tile.tiles + t, g.tiles - 1))
        base = T.bind(((n * self.height + 2 * h) * self.breadth + self.tile.across * w) * g.channels)
        with T.serial(0, g.channels // self.width) as c:
            at = T.bind(base + c * self.width)
            columns = []
            for j in range(self.span):
                d = [self._load(self.padded, at + (i * self.breadth + j) * g.channels) for i in range(4)]
                columns.append(transform_input(d))
            for i in range(4):
                for j, value in enumerate(transform_input([column[i] for column in columns])):
                    to = v_base + (self.span * i + j) * self.v_stride + t * g.channels + c * self.width
                    _store(v, T.ramp(to, 1, self.width), value)

    def _expand(self, u: Buffer, block: Expr, u_base: Index) -> None:
        g = self.g
        together = 2 if g.intrinsic.nibbles else 1
        with T.serial(0, g.weight_shape[2]) as stored:
            for half, vector in [(half, vector) for half in range(together) for vector in range(g.vectors)]:
                k, first = stored * together + half, vector * self.lanes
                columns = []
                for s in range(3):
                    weights = [self._weights(block, 3 * r + s, stored, first, half) for r in range(3)]
                    columns.append(transform_weights(weights, 2))
                for i in range(4):
                    row = transform_weights([column[i] for column in columns], self.tile.across)
                    for j, value in enumerate(row):
                        at = (self.span * i + j) * self.u_stride + (k * g.vectors + vector) * self.width
                        _store(u, T.ramp(u_base + at, 1, self.width), value)

    def _weights(self, block: Expr, tap: int, stored: Expr, first: int, half: int) -> Expr:
        value = self.weight.vload([block, tap, stored, first, 0], f"{self.weight.dtype}x{self.width}")
        if self.g.intrinsic.nibbles:
            words = T.cast(value, f"int16x{self.width}")
            if half:
                code = T.shift_right(words, T.broadcast(T.int16(4), self.width))
            else:
                code = T.bitwise_and(words, T.broadcast(T.int16(15), self.width))
            return T.bind(code - T.broadcast(T.int16(NIBBLE_OFFSET), self.width))
        if self.integer:
            return T.bind(T.cast(value, f"int16x{self.width}"))
        return T.bind(widened(value, self.g.intrinsic.weight, self.width))

    def _multiply(
        self, v: Buffer, u: Buffer, m: Buffer, p: Expr, first: Expr, v_base: Index, u_base: Index
    ) -> None:
        g, tile = self.g, self.tile
        group, steps = g.intrinsic.group, g.channels // g.intrinsic.group
        acc = scratch(tile.rows * g.block, self.sum)
        places = [
            (row, vector, T.ramp(row * g.block + vector * self.lanes, 1, self.lanes))
            for row in range(tile.rows)
            for vector in range(g.vectors)
        ]
        for _, _, place in places:
            _store(acc, place, T.broadcast(T.cast(0, self.sum), self.lanes))
        v_at = T.bind(v_base + p * self.v_stride + first * g.channels)
        u_at = T.bind(u_base + p * self.u_stride)
        with T.serial(0, steps // tile.unroll) as outer:
            for step in range(tile.unroll):
                k = outer * tile.unroll + step
                w = [
                    self._load(u, u_at + (k * g.vectors + vector) * self.width) for vector in range(g.vectors)
                ]
                for row in range(tile.rows):
                    a = T.bind(self._broadcast(v, v_at + row * g.channels + k * group))
                    for vector in range(g.vectors):
                        place = T.ramp(row * g.block + vector * self.lanes, 1, self.lanes)
                        _store(
                            acc,
                            place,
                            multiply_accumulate(g.intrinsic.family, acc[place], a, w[vector], self.lanes),
                        )
        for row, vector, place in places:
            to = p * self.m_stride + (first + row) * g.block + vector * self.lanes
            _store(m, T.ramp(to, 1, self.lanes), acc[place])

    def _broadcast(self, v: Buffer, at: Expr) -> Expr:
        if not self.integer:
            return T.broadcast(v[at], self.lanes)
        return T.broadcast(T.reinterpret(v[T.ramp(at, 1, 2)], dtype="int32"), self.lanes)

    def _finish_tile(self, m: Buffer, tiles_at: Expr, t: Expr, block: Expr) -> None:
        g, shape, across = self.g, self.g.shape, self.tile.across
        at = T.bind(tiles_at * self.tile.tiles + t)
        with When([at < g.tiles] if g.tiles % self.tile.tiles else []):
            n, h, w = self._position(at)
            for vector in range(g.vectors):
                first = vector * self.lanes
                channel = T.bind(block * g.block + first)
                columns = []
                for j in range(self.span):
                    column = []
                    for i in range(4):
                        place = (self.span * i + j) * self.m_stride + t * g.block + first
                        column.append(T.bind(m[T.ramp(place, 1, self.lanes)]))
                    columns.append(transform_output(column))
                sums = [transform_output([column[a] for column in columns]) for a in range(2)]
                for a in range(2):
                    for b in range(across):
                        conditions = []
                        if shape.out_height % 2 and a:
                            conditions.append(2 * h + a < shape.out_height)
                        if b >= shape.out_width % across > 0:
                            conditions.append(across * w + b < shape.out_width)
                        row = (n * shape.out_height + 2 * h + a) * shape.out_width + across * w + b
                        with When(conditions):
                            self._store_result(sums[a][b], row, block, channel, first)

    def _store_result(self, value: Expr, row: Expr, block: Expr, channel: Expr, first: int) -> None:
        """Finish the multiple of a sum and store it at ``row``; channels past the last are left out."""
        outputs, lanes = self.g.shape.out_channels, self.lanes
        result = self._finish(value, block, T.ramp(first, 1, lanes))
        conditions = [channel < outputs] if outputs % self.g.block else []
        store_vector(self.result, result, row, channel, lanes, conditions)

    def _finish(self, value: Expr, block: Expr, lanes: Expr) -> Expr:
        n = self.lanes
        bias = self.bias[0, block, lanes]
        if not self.integer:
            quarter = T.broadcast(T.float32(0.25), n)
            if self.scaled:
                quarter = quarter * self.multiplier[0, block, lanes]
            return activate(value * quarter + bias, self.out)
        if self.tile.across == 4:
            value = value * T.broadcast(T.uint32(THIRD), n)
        scaled = T.reinterpret(value, dtype=f"int32x{n}")
        total = T.shift_right(scaled, T.broadcast(T.int32(SHIFT[self.tile.across]), n)) + bias
        scale = self.multiplier[0, block, lanes]
        if self.out.dtype == "uint8":
            return requantize_vector(total, scale, self.grid[1], n)
        return activate(T.cast(total, f"float32x{n}") * scale, self.out)

    def _position(self, tile: Expr) -> tuple[Expr, Expr, Expr]:
        rows, columns = self.g.tile_rows, self.g.tile_columns
        return (
            T.bind(tile // (rows * columns)),
            T.bind(tile // columns % rows),
            T.bind(tile % columns),
        )

    def _load(self, buffer: Buffer, at: Expr) -> Expr:
        return T.bind(buffer[T.ramp(at, 1, self.width)])


def _store(buffer: Buffer, at: Expr, value: Expr) -> None:
    T.buffer_store(buffer, value, [at])
