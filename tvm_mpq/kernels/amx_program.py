"""The program of a convolution on AMX, written out for one shape and tile.

    copy = the padded input, or the pixels that a strided 1×1 reads          (where the input itself will not do)
    for task in parallel(row tasks × column tasks):
        for column group:  (unpack its weights, where they come two in a byte)  for row group:
            results[rows, columns] = bias                                    (tiles, in registers)
            for kernel row, step:  results += activations[rows] × weights[columns]
            requantize and store

It is emitted, as no schedule names tile registers. What it computes is what ``convolution`` computes, bit for bit.
"""

from __future__ import annotations

from typing import TypeAlias

from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels import amx_instructions
from tvm_mpq.kernels.amx import AmxGeometry, AmxTile, copied_bytes
from tvm_mpq.kernels.amx_instructions import LANES, ROWS
from tvm_mpq.kernels.avx512_requantize import requantize_pair
from tvm_mpq.kernels.convolution import Output, activate
from tvm_mpq.kernels.emitting import When, addition_arguments, argument, scratch, store_vector
from tvm_mpq.kernels.requantize import requantize_vector
from tvm_mpq.kernels.tensor_intrinsics import unpack_nibbles

Index: TypeAlias = int | Expr


def amx(geometry: AmxGeometry, out: Output, tile: AmxTile, adds: bool) -> PrimFunc:
    """The kernel.

    Parameters, in order: x uint8 [N·H·W, C]; weights int8 [1, blocks, steps, words, 16, 4], or uint8 with half the
    words; bias int32 and multiplier float32 [1, blocks, 16]; grid int32 [2] (input and output zero-point); where it
    ``adds``, those of :class:`Addition`; then the output [rows, out_channels].
    """
    return _Program(geometry, out, tile, adds).emit()


class _Program:
    def __init__(self, geometry: AmxGeometry, out: Output, tile: AmxTile, adds: bool) -> None:
        self.g, self.out, self.tile, self.adds = geometry, out, tile, adds
        self.copied = not geometry.shape.is_plain_matrix()
        self.places = [(row, column) for row in range(tile.rows) for column in range(tile.columns)]
        self.width = tile.columns * LANES

    def emit(self) -> PrimFunc:
        g, shape, tile = self.g, self.g.shape, self.tile
        words = g.step // 4
        row_groups, column_groups = -(-g.row_tiles // tile.rows), -(-g.blocks // tile.columns)
        row_tasks = -(-row_groups // tile.row_groups)
        imported = amx_instructions.imported(words, tile.rows, tile.columns)
        with IRBuilder() as builder, T.prim_func(s_tir=True):
            T.func_name("main")
            pixels = shape.batch * shape.height * shape.width
            self.x = argument("x", (pixels, shape.in_channels), "uint8")
            steps = shape.kernel[0] * g.steps
            stored = words // 2 if g.nibbles else words
            self.weight = argument("weight", (1, g.blocks, steps, stored, LANES, 4), g.row.weight)
            self.bias = argument("bias", (1, g.blocks, LANES), "int32")
            self.multiplier = argument("multiplier", (1, g.blocks, LANES), "float32")
            self.grid = argument("grid", (2,), "int32")
            if self.adds:
                self.addition = addition_arguments(shape.rows, shape.out_channels)
            self.result = argument("out", (shape.rows, shape.out_channels), self.out.dtype)
            if self.copied:
                self.copy = _whole_scratch(copied_bytes(g), "uint8")
                self._copy()
            amx_instructions.ask()
            tasks = row_tasks * (column_groups // tile.column_groups)
            with T.parallel(0, tasks, annotations={"pragma_import_llvm": imported}) as task:
                amx_instructions.configure(words, tile.rows, tile.columns)
                sums = _whole_scratch(tile.rows * ROWS * self.width, "int32")
                if g.nibbles:
                    self.panel = scratch(tile.columns * self._block_bytes, "int8")
                with T.serial(0, tile.column_groups) as column:
                    first = T.bind((task // row_tasks * tile.column_groups + column) * tile.columns)
                    # Past the last block the last one is computed again.
                    blocks = [T.bind(T.min(first + n, g.blocks - 1)) for n in range(tile.columns)]
                    if g.nibbles:
                        self._unpack(blocks)
                    with T.serial(0, tile.row_groups) as row:
                        group = T.bind(task % row_tasks * tile.row_groups + row)
                        with When([group < row_groups] if row_groups % tile.row_groups else []):
                            self._group(group, blocks, sums)
                amx_instructions.release()
        return builder.get()

    def _copy(self) -> None:
        g, shape = self.g, self.g.shape
        c = shape.in_channels
        if g.kind == "plain":
            sh, sw = shape.stride
            lines = shape.batch * shape.out_height
            with T.parallel(0, lines) as line, T.serial(0, shape.out_width) as w:
                n, h = line // shape.out_height, line % shape.out_height
                pixel = (n * shape.height + h * sh) * shape.width + w * sw
                self._move((line * shape.out_width + w) * c, pixel, c)
            return
        top, left, _, right = shape.padding
        with T.parallel(0, shape.batch * g.height) as at:
            base, h = T.bind(at * (g.line * c)), T.bind(at % g.height - top)
            with T.If(T.And(h >= 0, h < shape.height)):
                with T.Then():
                    self._fill(base, left * c)
                    pixel = (at // g.height * shape.height + h) * shape.width
                    self._move(base + left * c, pixel, shape.width * c)
                    self._fill(base + (left + shape.width) * c, right * c)
                with T.Else():
                    self._fill(base, g.line * c)

    def _move(self, to: Index, pixel: Expr, length: int) -> None:
        """``length`` bytes of the input from ``pixel`` on."""
        target, source = T.address_of(self.copy[to]), T.address_of(self.x[pixel, 0])
        T.evaluate(T.call_extern("memcpy", target, source, T.int64(length), dtype="handle"))

    def _fill(self, to: Index, length: int) -> None:
        if length:
            target = T.address_of(self.copy[to])
            T.evaluate(T.call_extern("memset", target, self.grid[0], T.int64(length), dtype="handle"))

    @property
    def _block_bytes(self) -> int:
        """Of the unpacked weights of a block."""
        return self.g.shape.kernel[0] * self.g.steps * self.g.step * LANES

    def _unpack(self, blocks: list[Expr]) -> None:
        g, width = self.g, 4 * LANES
        pairs = g.step // 8
        for n, block in enumerate(blocks):
            with T.serial(0, g.shape.kernel[0] * g.steps) as step, T.serial(0, pairs) as pair:
                packed = self.weight.vload([0, block, step, pair, 0, 0], f"uint8x{width}")
                to = T.bind(n * self._block_bytes + (step * pairs + pair) * (2 * width))
                for half, codes in enumerate(unpack_nibbles(T.bind(packed), width)):
                    T.buffer_store(self.panel, codes, [T.ramp(to + half * width, 1, width)])

    def _group(self, group: Expr, blocks: list[Expr], sums: Buffer) -> None:
        """``rows`` × ``columns`` tiles of results from row tile ``group`` · rows on."""
        g, tile = self.g, self.tile
        results, count = tile.rows * tile.columns, g.row_tiles
        # Past the last tile the last one is computed again.
        tiles = [T.bind(T.min(group * tile.rows + row, count - 1)) for row in range(tile.rows)]
        starts = [self._start(each) for each in tiles]
        for row, column in self.places:
            address = T.address_of(self.bias[0, blocks[column], 0])
            amx_instructions.load(row * tile.columns + column, address, 0)
        with T.serial(0, g.shape.kernel[0]) as r, T.serial(0, g.steps) as step:
            for row, start in enumerate(starts):
                amx_instructions.load(
                    results + row, self._activations(start, r, step * g.step), self._row_bytes
                )
            for column, block in enumerate(blocks):
                at = r * g.steps + step
                if g.nibbles:
                    address = T.address_of(self.panel[column * self._block_bytes + at * (g.step * LANES)])
                else:
                    address = T.address_of(self.weight[0, block, at, 0, 0, 0])
                amx_instructions.load(results + tile.rows + column, address, 4 * LANES)
            for row, column in self.places:
                amx_instructions.multiply(
                    row * tile.columns + column, results + row, results + tile.rows + column
                )
        for row, column in self.places:
            address = T.address_of(sums[row * ROWS * self.width + column * LANES])
            amx_instructions.store(row * tile.columns + column, address, 4 * self.width)
        for row, each in enumerate(tiles):
            self._finish_tile(each, row, blocks, sums)

    @property
    def _row_bytes(self) -> int:
        """From one row of a tile of activations to the next."""
        strided = self.g.kind == "lines"
        return self.g.shape.in_channels * (self.g.shape.stride[1] if strided else 1)

    def _line_start(self, tile: Expr) -> tuple[Expr, Expr]:
        """Output row and first column of a tile of ``lines``: the last of a row overlaps the one before it."""
        width = self.g.shape.out_width
        each = -(-width // ROWS)
        return tile // each, T.min(tile % each * ROWS, max(0, width - ROWS))

    def _start(self, tile: Expr) -> Expr:
        """Where a tile's first row begins, in bytes of what is multiplied (in rows, of the input itself)."""
        g, shape = self.g, self.g.shape
        if g.kind == "plain":
            first = T.min(tile * ROWS, shape.rows - ROWS)
            return T.bind(first * shape.in_channels if self.copied else first)
        if g.kind == "flat":
            return T.bind(tile * (ROWS * shape.in_channels))
        line, column = self._line_start(tile)
        top = line // shape.out_height * g.height + line % shape.out_height * shape.stride[0]
        return T.bind((top * g.line + column * shape.stride[1]) * shape.in_channels)

    def _activations(self, start: Expr, r: Expr, offset: Expr) -> Expr:
        if not self.copied:
            return T.address_of(self.x[start, offset])
        return T.address_of(self.copy[start + r * (self.g.line * self.g.shape.in_channels) + offset])

    def _finish_tile(self, tile: Expr, row: int, blocks: list[Expr], sums: Buffer) -> None:
        g, shape = self.g, self.g.shape
        if g.kind == "lines":
            line, column = (T.bind(each) for each in self._line_start(tile))
        with T.serial(0, ROWS) as i:
            conditions: list[Expr] = []
            if g.kind == "plain":
                at = T.bind(T.min(tile * ROWS, shape.rows - ROWS) + i)
            elif g.kind == "flat":
                pixel = T.bind(tile * ROWS + i)
                h, w = T.bind(pixel // g.line % g.height), T.bind(pixel % g.line)
                n = T.bind(pixel // (g.line * g.height))
                at = T.bind((n * shape.out_height + h) * shape.out_width + w)
                conditions = [w < shape.out_width, h < shape.out_height, n < shape.batch]
            else:
                at = T.bind(line * shape.out_width + column + i)
                conditions = [column + i < shape.out_width] if shape.out_width < ROWS else []
            with When(conditions):
                place = (row * ROWS + i) * self.width
                totals = [sums[T.ramp(place + n * LANES, 1, LANES)] for n in range(len(blocks))]
                whole = g.blocks % self.tile.columns == 0 and shape.out_channels % LANES == 0
                paired = self.tile.columns // 2 * 2 if whole and self.out.dtype == "uint8" else 0
                for n in range(0, paired, 2):
                    self._finish(totals[n : n + 2], at, blocks[n : n + 2])
                for n in range(paired, self.tile.columns):
                    self._finish([totals[n]], at, [blocks[n]])

    def _finish(self, totals: list[Expr], at: Expr, blocks: list[Expr]) -> None:
        """Results of a row in one block, or in two neighbouring ones at once."""
        channel, zero = T.bind(blocks[0] * LANES), self.grid[1]
        scales = [self.multiplier[0, block, T.ramp(0, 1, LANES)] for block in blocks]
        if self.adds:
            codes = [requantize_vector(*each, zero, LANES) for each in zip(totals, scales, strict=True)]
            totals = [self._sum(code, at, channel + n * LANES) for n, code in enumerate(codes)]
            zero = self.addition.grid[1]
            scales = [T.broadcast(self.addition.multiplier[0], LANES)] * len(blocks)
        if self.out.dtype != "uint8":
            value = activate(T.cast(totals[0], f"float32x{LANES}") * scales[0], self.out)
        elif len(blocks) == 2:
            value = requantize_pair(totals, scales, zero)
        else:
            value = requantize_vector(totals[0], scales[0], zero, LANES)
        store_vector(self.result, value, at, channel, len(blocks) * LANES)

    def _sum(self, code: Expr, at: Expr, channel: Expr) -> Expr:
        """The other tensor added to uint8 ``code``s (see :meth:`Addition.element`), int32."""
        first, second, offset = (T.broadcast(self.addition.factors[i], LANES) for i in range(3))
        others = T.cast(self.addition.other[at, T.ramp(channel, 1, LANES)], f"int32x{LANES}")
        return T.cast(code, f"int32x{LANES}") * first + others * second + offset


def _whole_scratch(length: int, dtype: str) -> Buffer:
    """Scratch that is used by address: TVM cuts a buffer off behind the last element that it sees used."""
    buffer = scratch(length, dtype)
    T.buffer_store(buffer, T.Cast(dtype, 0), [length - 1])
    return buffer
