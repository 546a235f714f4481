"""Depthwise convolution of 8-bit tensors by x86's products of pairs, written out for one shape.

``vpmaddwd`` multiplies int16 and adds neighbouring products. Here they are two rows of one column and channel: a task
pads its input into pairs of rows, [pair, column, channel, row in the pair], and the window of an output row meets each
pair that it touches with weights that are zero where the pair lies outside of it:

    acc[h, w, c] = bias[c] + Σ_{p, s} Σ_{j < 2} stage[p, w·stride + s, c, j] · weight[2·(p − first) + j − phase, s, c]

with first = h·stride // 2 and phase = h·stride mod 2. A 3×3 kernel takes 6 multiplications for a vector of results
where single taps take 9, a 5×5 kernel 15 for 25, and activations are widened once, when they are staged.

Channels are made in blocks of two vectors. Interleaving and narrowing work inside 128 bits, so the first vector has the
lower and the second the upper four of every eight channels: both are one instruction then, and nothing is permuted.
Where the channels fill no whole blocks, the last one begins earlier and makes some of them again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Buffer, Expr, PrimFunc

from tvm_mpq.kernels.convolution import ConvolutionShape, Output, activate
from tvm_mpq.kernels.emit import When
from tvm_mpq.kernels.emitting import argument, program, scratch, store
from tvm_mpq.kernels.tensor_intrinsics import PMADDWD, call_llvm
from tvm_mpq.kernels.tiles import shared_evenly

_PACKSSDW = {8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
_STAGE_BYTES = 32 * 1024
_MOST_STAGE_BYTES = 2**17


@dataclass(frozen=True)
class PairDepthwiseTile:
    """``columns`` results of a block of channels are kept in registers; a parallel task makes ``rows`` output rows."""

    columns: int
    rows: int


def pair_lanes(shape: ConvolutionShape, lanes: int) -> int | None:
    """The results of a vector, at most ``lanes``, or None where there is no such kernel.

    Each channel is read by one output, and rows of a window are neighbours. Wide vectors have to waste few channels.
    """
    if shape.in_channels != shape.out_channels or shape.dilation != (1, 1) or shape.kernel[0] * shape.kernel[1] > 64:
        return None
    channels = shape.out_channels
    for fewer in (16, 8):
        padded = -(-channels // (2 * fewer)) * 2 * fewer
        if fewer <= lanes and channels >= 2 * fewer and (fewer == 8 or padded <= 1.25 * channels):
            return fewer
    return None


def pair_depthwise(shape: ConvolutionShape, out: Output, lanes: int, tile: PairDepthwiseTile) -> PrimFunc:
    """The kernel; parameters as those of ``depthwise``."""
    return _Program(shape, out, lanes, tile).emit()


def default_pair_tile(shape: ConvolutionShape, lanes: int, registers: int) -> PairDepthwiseTile:
    """The tile."""
    return PairDepthwiseTile(min(4, shape.out_width), shape.out_height)


def _divisors(value: int) -> list[int]:
    return [d for d in range(1, value + 1) if value % d == 0]


def _period(shape: ConvolutionShape) -> int:
    """After how many output rows windows lie in their pairs as before."""
    return 2 // math.gcd(2, shape.stride[0])


def _pairs(shape: ConvolutionShape, index: int) -> int:
    """Pairs that the window of an output row touches; ``index`` says which row of a period."""
    return -(-(_phase(shape, index) + shape.kernel[0]) // 2)


def _phase(shape: ConvolutionShape, index: int) -> int:
    return index * shape.stride[0] % 2


def _staged_pairs(shape: ConvolutionShape, rows: int) -> int:
    return -(-((rows - 1) * shape.stride[0] + shape.kernel[0]) // 2)


def _line(shape: ConvolutionShape) -> int:
    """Columns of a staged pair."""
    return (shape.out_width - 1) * shape.stride[1] + shape.kernel[1]


class _Program:
    def __init__(self, shape: ConvolutionShape, out: Output, lanes: int, tile: PairDepthwiseTile) -> None:
        self.shape, self.out, self.lanes, self.tile = shape, out, lanes, tile
        self.channels = 2 * lanes
        """Of a block."""

    def emit(self) -> PrimFunc:
        s, channels = self.shape, self.shape.out_channels
        blocks, row_tasks = -(-channels // self.channels), s.out_height // self.tile.rows
        with program() as builder:
            self.x = argument("x", (s.batch * s.height * s.width, channels), "uint8")
            self.weight = argument("weight", (*s.kernel, channels), "int8")
            self.bias = argument("bias", (channels,), "int32")
            self.multiplier = argument("multiplier", (channels,), "float32")
            self.grid = argument("grid", (2,), "int32")
            self.result = argument("out", (s.rows, channels), self.out.dtype)
            with T.sblock("root"):
                T.reads()
                T.writes()
                with T.parallel(0, s.batch * row_tasks * blocks) as task:
                    first = task % blocks * self.channels
                    if channels % self.channels:
                        first = T.min(first, channels - self.channels)
                    rows = T.bind(task // blocks)
                    image, top = T.bind(rows // row_tasks), T.bind(rows % row_tasks * self.tile.rows)
                    self._task(T.bind(first), image, top)
        return builder.get()

    def _task(self, first: Expr, image: Expr, top: Expr) -> None:
        """Output rows from ``top`` on of the block of channels from ``first`` on."""
        s, rows, period = self.shape, self.tile.rows, _period(self.shape)
        self.stage = scratch(_staged_pairs(s, rows) * _line(s) * 2 * self.channels, "int16")
        most = max(_pairs(s, index) for index in range(period))
        self.taps = scratch(period * most * s.kernel[1] * 2 * self.channels, "int16")
        self.start = scratch(self.channels, "int32")
        self.scale = scratch(self.channels, "float32")
        self._arrange_parameters(first)
        self._pad(first, image, top)
        with T.serial(0, -(-rows // period)) as turn:
            for index in range(period):
                row = T.bind(turn * period + index)
                with When([row < rows] if index and rows % period else []):
                    self._row(index, row, first, T.bind((image * s.out_height + top + row) * s.out_width))

    def _arrange_parameters(self, first: Expr) -> None:
        """Weights in pairs, bias and multiplier, in the order of the vectors' channels."""
        s = self.shape
        channels = T.ramp(first, 1, self.channels)
        none = T.broadcast(T.int16(0), self.channels)
        for index in range(_period(s)):
            for pair in range(_pairs(s, index)):
                for column in range(s.kernel[1]):
                    rows = [2 * pair + j - _phase(s, index) for j in range(2)]
                    taps = [
                        T.cast(self.weight[r, column, channels], f"int16x{self.channels}")
                        if 0 <= r < s.kernel[0]
                        else none
                        for r in rows
                    ]
                    self._store_pairs(self.taps, self._tap(index, pair, column), taps)
        for source, target in ((self.bias, self.start), (self.multiplier, self.scale)):
            values = source[channels]
            for vector in range(2):
                lanes = [8 * (lane // 4) + 4 * vector + lane % 4 for lane in range(self.lanes)]
                store(target, [T.ramp(vector * self.lanes, 1, self.lanes)], _shuffle([values], lanes))

    def _tap(self, index: int, pair: int, column: int) -> int:
        most = max(_pairs(self.shape, each) for each in range(_period(self.shape)))
        return (index * most + pair) * self.shape.kernel[1] + column

    def _store_pairs(self, target: Buffer, place: Expr | int, rows: list[Expr]) -> None:
        """Interleave two vectors of a block's channels, int16, into both vectors at number ``place``."""
        for vector in range(2):
            inside = [8 * quad + 4 * vector + i for quad in range(self.lanes // 4) for i in range(4)]
            lanes = [self.channels * row + lane for lane in inside for row in range(2)]
            at = (place * 2 + vector) * self.channels
            store(target, [T.ramp(at, 1, self.channels)], _shuffle(rows, lanes))

    def _pad(self, first: Expr, image: Expr, top: Expr) -> None:
        """The task's input in pairs of rows, with the zero-point outside of the image."""
        s, line = self.shape, _line(self.shape)
        above, left = s.padding[:2]
        left = min(left, line)
        right = min(left + s.width, line)
        fill = T.bind(T.broadcast(T.cast(self.grid[0], "int16"), self.channels))
        with T.serial(0, _staged_pairs(s, self.tile.rows)) as pair:
            row = T.bind(top * s.stride[0] - above + 2 * pair)
            for begin, end in ((0, left), (right, line)):
                if begin < end:
                    with T.serial(begin, end) as w:
                        self._store_pairs(self.stage, pair * line + w, [fill, fill])

            def copy(inside: list[bool]) -> None:
                with T.serial(left, right) as w:
                    rows = []
                    for j in range(2):
                        at = (image * s.height + row + j) * s.width + w - left
                        pixel = self._widened(self.x[at, T.ramp(first, 1, self.channels)])
                        rows.append(T.bind(pixel) if inside[j] else fill)
                    self._store_pairs(self.stage, pair * line + w, rows)

            if left < right:
                _cases([tirx.all(row + j >= 0, row + j < s.height) for j in range(2)], copy)

    def _widened(self, pixel: Expr) -> Expr:
        """Bytes with zeros between them; as a cast, LLVM would rather interleave bytes and widen those, which takes more."""
        zeros = T.broadcast(T.uint8(0), self.channels)
        lanes = [half * self.channels + lane for lane in range(self.channels) for half in range(2)]
        return T.reinterpret(_shuffle([pixel, zeros], lanes), dtype=f"int16x{self.channels}")

    def _row(self, index: int, row: Expr, first: Expr, line: Expr) -> None:
        """An output row, whose results begin at pixel ``line``; ``index`` says which of a period."""
        s, columns = self.shape, self.tile.columns
        pair = T.bind(row * s.stride[0] // 2)
        whole, rest = divmod(s.out_width, columns)
        with T.serial(0, whole) as part:
            self._tile(index, pair, T.bind(part * columns), columns, first, line)
        if rest:
            self._tile(index, pair, tirx.const(whole * columns, "int32"), rest, first, line)

    def _tile(self, index: int, pair: Expr, left: Expr, columns: int, first: Expr, line: Expr) -> None:
        s, lanes = self.shape, self.lanes
        acc = scratch(columns * self.channels, "int32")

        def at(column: int, vector: int) -> Expr:
            return T.ramp((column * 2 + vector) * lanes, 1, lanes)

        for vector in range(2):
            for column in range(columns):
                store(acc, [at(column, vector)], self.start[T.ramp(vector * lanes, 1, lanes)])
        for p in range(_pairs(s, index)):
            for vector in range(2):
                for w in range((columns - 1) * s.stride[1] + s.kernel[1]):
                    place = (pair + p) * _line(s) + left * s.stride[1] + w
                    read = self.stage[T.ramp((place * 2 + vector) * self.channels, 1, self.channels)]
                    for column, tap in _windows(w, columns, s):
                        number = self._tap(index, p, tap) * 2 + vector
                        taps = self.taps[T.ramp(number * self.channels, 1, self.channels)]
                        product = call_llvm(PMADDWD[lanes], f"int32x{lanes}", read, taps)
                        store(acc, [at(column, vector)], acc[at(column, vector)] + product)
        for column in range(columns):
            vectors = [
                T.cast(acc[at(column, v)], f"float32x{lanes}") * self.scale[T.ramp(v * lanes, 1, lanes)]
                for v in range(2)
            ]
            store(self.result, [line + left + column, T.ramp(first, 1, self.channels)], self._finish(vectors))

    def _finish(self, vectors: list[Expr]) -> Expr:
        """A block of results in the order of channels.

        uint8 are ``requantize``'s: rounded values are narrowed to int16 with saturation and the zero-point is added
        with saturation; as it is 0 … 255, what both cut off lies outside 0 … 255 with and without it.
        """
        lanes, channels = self.lanes, self.channels
        if self.out.dtype != "uint8":
            order = [
                lanes * v + 4 * quad + i for quad in range(lanes // 4) for v in range(2) for i in range(4)
            ]
            return activate(_shuffle(vectors, order), self.out)
        rounded = [tirx.call_llvm_pure_intrin(f"int32x{lanes}", "llvm.lrint", v) for v in vectors]
        narrow = call_llvm(_PACKSSDW[lanes], f"int16x{channels}", *rounded)
        zero_point = T.broadcast(T.cast(self.grid[1], "int16"), channels)
        code = call_llvm("llvm.sadd.sat", f"int16x{channels}", narrow, zero_point)
        low, high = (T.broadcast(T.int16(bound), channels) for bound in (0, 255))
        return T.cast(tirx.max(tirx.min(code, high), low), f"uint8x{channels}")


def _cases(conditions: list[Expr], emit: Callable[[list[bool]], None], known: tuple[bool, ...] = ()) -> None:
    """Emit the code of each combination of ``conditions`` under a test for it."""
    if len(known) == len(conditions):
        emit([*known])
        return
    with T.If(conditions[len(known)]):
        with T.Then():
            _cases(conditions, emit, (*known, True))
        with T.Else():
            _cases(conditions, emit, (*known, False))


def _windows(w: int, columns: int, shape: ConvolutionShape) -> Iterator[tuple[int, int]]:
    """The output columns of a tile whose windows hold its input column ``w``, and the tap that it meets there."""
    for column in range(columns):
        tap = w - column * shape.stride[1]
        if 0 <= tap < shape.kernel[1]:
            yield column, tap


def _shuffle(vectors: list[Expr], lanes: list[int]) -> Expr:
    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in lanes])
