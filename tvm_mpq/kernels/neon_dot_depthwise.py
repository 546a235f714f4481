"""Depthwise convolution of 8-bit tensors by ARM's dot products, written out for one shape.

A dot product adds four neighbouring bytes to a result. Here they are four rows of one column and channel: a task pads
its input into groups of four rows, [group, column, channel, row in the group], and the window of an output row
meets each group that it touches with weights that are zero where the group lies outside of it:

    acc[h, w, c] = Σ_{g, s} Σ_{j < 4} stage[g, w·stride + s, c, j] · weight[4·(g − first) + j − phase, s, c]

with first = h·stride // 4 and phase = h·stride mod 4. Every staged vector serves all columns of the window, so that a
3×3 kernel takes 3 to 6 instructions for four results where products alone would take 9, and a 5×5 kernel 10 for 25.

``sdot`` takes signed bytes: activations are staged less 128, and 128 times the weights is added to the bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels import neon
from tvm_mpq.kernels.convolution import ConvolutionShape, Output, activate
from tvm_mpq.kernels.depthwise import DepthwiseTile, task_rows
from tvm_mpq.kernels.depthwise_emitting import arguments, windows
from tvm_mpq.kernels.divisors import divisors
from tvm_mpq.kernels.emitting import When, program, scratch, store
from tvm_mpq.kernels.neon_requantize import neon_requantize_vector

CHANNELS = 16
"""Channels of a task: a vector of bytes."""
_REGISTERS = 32
_STAGE_BYTES = 48 * 1024
_MOST_STAGE_BYTES = 2**17


def dot_depthwise_fits(shape: ConvolutionShape, in_dtype: str) -> bool:
    """Whether there is such a kernel: whole vectors of channels, each read by one output, and windows without gaps."""
    plain = shape.in_channels == shape.out_channels and shape.dilation == (1, 1)
    small = shape.kernel[0] <= 8 and _groups(shape) * shape.kernel[1] <= _REGISTERS - 6
    return in_dtype == "uint8" and plain and small and shape.out_channels % CHANNELS == 0


def default_dot_tile(shape: ConvolutionShape) -> DepthwiseTile:
    """Columns that take the fewest instructions a result, and rows that fill their groups and fit the cache."""
    return min(
        (tile for tile in dot_tiles(shape) if _staged(shape, tile.rows) <= _STAGE_BYTES or tile.rows == 1),
        key=lambda tile: (
            _instructions(shape, tile.columns),
            _staged(shape, tile.rows) / tile.rows,
            tile.rows != task_rows(shape),
        ),
    )


def _instructions(shape: ConvolutionShape, columns: int) -> float:
    """For four results, without what no tile changes: loads, finishing, the loop."""
    vectors = _vectors(shape, columns)
    loads = _groups(shape) * ((columns - 1) * shape.stride[1] + shape.kernel[1]) / columns
    return loads + (5.5 if vectors == 2 else 7.0) + 4 / (columns * vectors)


def _vectors(shape: ConvolutionShape, columns: int) -> int:
    """How many vectors of four channels a tile has: two are narrowed and stored at once."""
    return 2 if _registers(shape, columns, 2) <= _REGISTERS else 1


def dot_tiles(shape: ConvolutionShape) -> list[DepthwiseTile]:
    """Every tile whose results fit the registers beside the weights and whose input fits the cache."""
    return [
        DepthwiseTile(columns, CHANNELS, rows, CHANNELS)
        for columns in divisors(shape.out_width)
        for rows in divisors(shape.out_height)
        if _registers(shape, columns, 1) <= _REGISTERS
        and (rows == 1 or _staged(shape, rows) <= _MOST_STAGE_BYTES)
    ]


def dot_depthwise(shape: ConvolutionShape, out: Output, family: str, tile: DepthwiseTile) -> PrimFunc:
    """The kernel, by ``family`` "sdot" or "usdot"; parameters as those of ``depthwise``."""
    return _Program(shape, out, family, tile).emit()


def _period(shape: ConvolutionShape) -> int:
    """After how many output rows windows lie in their groups as before."""
    return 4 // math.gcd(4, shape.stride[0])


def _groups(shape: ConvolutionShape, phase: int | None = None) -> int:
    """Groups that the window of an output row touches; at most, for None."""
    phases = [shape.stride[0] * i % 4 for i in range(_period(shape))] if phase is None else [phase]
    return max(-(-(each + shape.kernel[0]) // 4) for each in phases)


def _staged_groups(shape: ConvolutionShape, rows: int) -> int:
    return -(-((rows - 1) * shape.stride[0] + shape.kernel[0]) // 4)


def _line(shape: ConvolutionShape) -> int:
    """Columns of a staged group."""
    return max(shape.width + shape.padding[1], (shape.out_width - 1) * shape.stride[1] + shape.kernel[1])


def _staged(shape: ConvolutionShape, rows: int) -> int:
    return _staged_groups(shape, rows) * _line(shape) * 4 * CHANNELS


def _registers(shape: ConvolutionShape, columns: int, vectors: int) -> int:
    """For results, a phase's weights, activations and what finishing takes."""
    return vectors * (columns + _groups(shape) * shape.kernel[1]) + 4


class _Program:
    def __init__(self, shape: ConvolutionShape, out: Output, family: str, tile: DepthwiseTile) -> None:
        self.shape, self.out, self.family, self.tile = shape, out, family, tile
        self.staged_dtype = "uint8" if family == "usdot" else "int8"
        self.vectors = _vectors(shape, tile.columns)

    def emit(self) -> PrimFunc:
        s, channels = self.shape, self.shape.out_channels
        row_tasks = s.out_height // self.tile.rows
        with program() as builder:
            self.x, self.weight, self.bias, self.multiplier, self.grid, self.result = arguments(s, self.out)
            with T.sblock("root"):
                T.reads()
                T.writes()
                with T.parallel(0, s.batch * row_tasks * (channels // CHANNELS)) as task:
                    first = T.bind(task % (channels // CHANNELS) * CHANNELS)
                    rows = T.bind(task // (channels // CHANNELS))
                    image, top = T.bind(rows // row_tasks), T.bind(rows % row_tasks * self.tile.rows)
                    self._task(first, image, top)
        return builder.get()

    def _task(self, first: Expr, image: Expr, top: Expr) -> None:
        """Output rows from ``top`` on of the channels from ``first`` on."""
        s = self.shape
        phases = _period(s)
        self.stage = scratch(_staged(s, self.tile.rows), self.staged_dtype)
        self.taps = scratch(phases * _groups(s) * s.kernel[1] * 4 * CHANNELS, "int8")
        self.start = scratch(CHANNELS, "int32")
        self._arrange_weights(first)
        self._pad(first, image, top)
        with T.serial(0, -(-self.tile.rows // phases)) as period:
            for index in range(phases):
                row = T.bind(period * phases + index)
                with When([row < self.tile.rows] if self.tile.rows % phases else []):
                    self._row(index, row, first, T.bind(image * s.out_height + top + row))

    def _arrange_weights(self, first: Expr) -> None:
        s = self.shape
        channels = T.ramp(first, 1, CHANNELS)
        none = T.broadcast(T.int8(0), CHANNELS)
        for index in range(_period(s)):
            phase = s.stride[0] * index % 4
            for group in range(_groups(s, phase)):
                for column in range(s.kernel[1]):
                    rows = [4 * group + j - phase for j in range(4)]
                    taps = [self.weight[r, column, channels] if 0 <= r < s.kernel[0] else none for r in rows]
                    store(
                        self.taps, [self._tap_at(index, group, column, 0, 4 * CHANNELS)], _interleaved(taps)
                    )
        for vector in range(CHANNELS // 4):
            total = self.bias[T.ramp(first + 4 * vector, 1, 4)]
            for group in range(_groups(s, 0) if self.family == "sdot" else 0):
                for column in range(s.kernel[1]):
                    for _ in range(2):
                        sixty_four = T.broadcast(T.int8(neon.OFFSET // 2), 4 * 4)
                        taps = self.taps[self._tap_at(0, group, column, vector, 16)]
                        total = neon.dot("sdot", total, sixty_four, taps)
            store(self.start, [T.ramp(4 * vector, 1, 4)], total)

    def _tap_at(self, index: int, group: int, column: int, vector: int, width: int) -> Expr:
        s = self.shape
        at = ((index * _groups(s) + group) * s.kernel[1] + column) * 4 * CHANNELS + 16 * vector
        return T.ramp(at, 1, width)

    def _pad(self, first: Expr, image: Expr, top: Expr) -> None:
        """The task's input, groups of four rows interleaved."""
        s = self.shape
        line, (above, left) = _line(s), s.padding[:2]
        fill = T.bind(self._bytes(T.broadcast(T.cast(self.grid[0], "uint8"), CHANNELS)))
        with T.serial(0, _staged_groups(s, self.tile.rows)) as group:
            row = T.bind(top * s.stride[0] - above + 4 * group)
            inside = tirx.all(row >= 0, row + 3 < s.height)

            def column(w: Expr, rows: list[Expr]) -> None:
                at = (group * line + w) * (4 * CHANNELS)
                store(self.stage, [T.ramp(at, 1, 4 * CHANNELS)], _interleaved(rows))

            def pixel(row: Expr, w: Expr) -> Expr:
                at = (image * s.height + row) * s.width + w
                return self._bytes(self.x[at, T.ramp(first, 1, CHANNELS)])

            for begin, end in ((0, left), (left + s.width, line)):
                if begin < end:
                    with T.serial(begin, end) as w:
                        column(w, [fill] * 4)
            with T.If(inside):
                with T.Then(), T.serial(0, s.width) as w:
                    column(w + left, [pixel(row + j, w) for j in range(4)])
                with T.Else(), T.serial(0, s.width) as w:
                    column(w + left, [self._row_or_fill(row + j, w, fill, pixel) for j in range(4)])

    def _row_or_fill(self, row: Expr, w: Expr, fill: Expr, pixel: Callable[[Expr, Expr], Expr]) -> Expr:
        return tirx.if_then_else(tirx.all(row >= 0, row < self.shape.height), pixel(row, w), fill)

    def _bytes(self, x: Expr) -> Expr:
        if self.family == "usdot":
            return x
        return T.reinterpret(x ^ T.broadcast(T.uint8(neon.OFFSET), CHANNELS), dtype=f"int8x{CHANNELS}")

    def _row(self, index: int, row: Expr, first: Expr, line: Expr) -> None:
        """An output row; ``index`` says which of a period."""
        s, tile = self.shape, self.tile
        group = T.bind(row * s.stride[0] // 4)
        for vector in range(0, CHANNELS // 4, self.vectors):
            with T.serial(0, s.out_width // tile.columns) as part:
                self._tile(index, group, T.bind(part * tile.columns), vector, first, line)

    def _tile(self, index: int, group: Expr, left: Expr, vector: int, first: Expr, line: Expr) -> None:
        s, columns = self.shape, self.tile.columns
        vectors = range(vector, vector + self.vectors)
        acc = scratch(columns * self.vectors * 4, "int32")

        def at(column: int, each: int) -> Expr:
            return T.ramp((column * self.vectors + each - vector) * 4, 1, 4)

        for each in vectors:
            for column in range(columns):
                store(acc, [at(column, each)], self.start[T.ramp(4 * each, 1, 4)])
        phase = s.stride[0] * index % 4
        for g in range(_groups(s, phase)):
            for w in range((columns - 1) * s.stride[1] + s.kernel[1]):
                for each in vectors:
                    place = ((group + g) * _line(s) + left * s.stride[1] + w) * (4 * CHANNELS) + 16 * each
                    read = self.stage[T.ramp(place, 1, 16)]
                    for column, tap in windows(w, columns, s):
                        taps = self.taps[self._tap_at(index, g, tap, each, 16)]
                        total = neon.dot(self.family, acc[at(column, each)], read, taps)
                        store(acc, [at(column, each)], total)
        self._finish(acc, left, vector, first, line)

    def _finish(self, acc: Buffer, left: Expr, vector: int, first: Expr, line: Expr) -> None:
        """Store the tile: eight results at a time, of two vectors or, where there is one, of two columns."""
        columns, width = self.tile.columns, 4 * self.vectors
        channels = T.ramp(first + 4 * vector, 1, width)
        for column in range(0, columns, 1 if self.vectors == 2 else 2):
            count = min(columns - column, 8 // width)
            values = acc[T.ramp(column * width, 1, count * width)]
            scale = self.multiplier[channels]
            if count == 2:
                scale = tirx.Shuffle([scale, scale], [tirx.const(lane, "int32") for lane in range(8)])
            if self.out.dtype == "uint8":
                results = neon_requantize_vector(values, scale, self.grid[1], count * width)
            else:
                results = activate(T.cast(values, f"float32x{count * width}") * scale, self.out)
            for each in range(count):
                lanes = [tirx.const(each * width + lane, "int32") for lane in range(width)]
                result = tirx.Shuffle([results], lanes) if count > 1 else results
                store(self.result, [line * self.shape.out_width + left + column + each, channels], result)


def _interleaved(rows: list[Expr]) -> Expr:
    """[4][16] → [16][4]."""
    lanes = [tirx.const(CHANNELS * row + lane, "int32") for lane in range(CHANNELS) for row in range(4)]
    return tirx.Shuffle(rows, lanes)
