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

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812 (TVM's own spelling)
from tvm.tirx import Expr, PrimFunc

from tvm_mpq.kernels.convolution import ConvolutionShape, Output, activate
from tvm_mpq.kernels.depthwise_emitting import arguments, windows
from tvm_mpq.kernels.emitting import When, program, scratch, store
from tvm_mpq.kernels.pair_depthwise_tile import (
    PairDepthwiseTile,
    most_window_pairs,
    row_period,
    staged_columns,
    turn_pairs,
    window_pairs,
    window_phase,
)
from tvm_mpq.kernels.tensor_intrinsics import PMADDWD, call_llvm

_PACKSSDW = {8: "llvm.x86.avx2.packssdw", 16: "llvm.x86.avx512.packssdw.512"}
_LEAST_MEMORY = 1024
"""Elements of a task's memory; less would be on the stack."""


def pair_depthwise(shape: ConvolutionShape, out: Output, lanes: int, tile: PairDepthwiseTile) -> PrimFunc:
    """The kernel; parameters as those of ``depthwise``. Two tasks may write the same bytes where blocks overlap."""
    return _Program(shape, out, lanes, tile).emit()


class _Program:
    def __init__(self, shape: ConvolutionShape, out: Output, lanes: int, tile: PairDepthwiseTile) -> None:
        self.shape, self.out, self.lanes, self.tile = shape, out, lanes, tile
        self.channels = 2 * lanes
        """Of a block."""

    def emit(self) -> PrimFunc:
        s, channels = self.shape, self.shape.out_channels
        groups = -(-channels // self.channels) // self.tile.blocks
        row_tasks = s.out_height // self.tile.rows
        with program() as builder:
            self.x, self.weight, self.bias, self.multiplier, self.grid, self.result = arguments(s, self.out)
            with T.sblock("root"):
                T.reads()
                T.writes()
                with T.parallel(0, s.batch * row_tasks * groups) as task:
                    self.first_block = T.bind(task % groups * self.tile.blocks)
                    rows = T.bind(task // groups)
                    image, top = T.bind(rows // row_tasks), T.bind(rows % row_tasks * self.tile.rows)
                    self._task(image, top)
        return builder.get()

    def _task(self, image: Expr, top: Expr) -> None:
        """Output rows from ``top`` on of the task's channels.

        The pairs that a period of rows touches stay; the next one's new pairs take the places of those behind it.
        """
        s, rows, period = self.shape, self.tile.rows, row_period(self.shape)
        kept, step = turn_pairs(s)
        # A block's vectors by number; together they are too large for the stack, where they lie across cache lines.
        self.first_tap = kept * staged_columns(s) * 2
        self.first_start = self.first_tap + period * most_window_pairs(s) * s.kernel[1] * 2
        self.first_scale, self.first_rounded = self.first_start + 2, self.first_start + 4
        self.of_block = self.first_rounded + self.tile.columns
        self.memory = scratch(max(self.tile.blocks * self.of_block * self.channels, _LEAST_MEMORY), "int16")
        self.fill = T.bind(T.broadcast(T.cast(self.grid[0], "int16"), self.channels))
        with self._each_block():
            self._arrange_parameters()
            self._pad_columns(kept)
        if kept > step:
            with T.serial(0, kept - step) as pair:
                self._stage(pair, image, top)
        with T.serial(0, -(-rows // period)) as turn:
            with T.serial(max(0, kept - step), kept) as pair:
                self._stage(turn * step + pair, image, top)
            with self._each_block():
                for index in range(period):
                    row = T.bind(turn * period + index)
                    with When([row < rows] if index and rows % period else []):
                        begin = turn * step + index * s.stride[0] // 2
                        pairs = [self._place(begin + p) for p in range(window_pairs(s, index))]
                        self._row(index, pairs, T.bind((image * s.out_height + top + row) * s.out_width))

    @contextmanager
    def _each_block(self) -> Iterator[None]:
        """Emit what is inside for each of the task's blocks: from channel ``first`` on, its memory from ``base`` on."""
        with T.serial(0, self.tile.blocks) as block:
            first = (self.first_block + block) * self.channels
            if self.shape.out_channels % self.channels:
                first = T.min(first, self.shape.out_channels - self.channels)
            self.first, self.base = T.bind(first), T.bind(block * self.of_block)
            yield

    def _place(self, pair: Expr) -> Expr:
        """The number of the first vector of a staged pair."""
        return T.bind(pair % turn_pairs(self.shape)[0] * (staged_columns(self.shape) * 2))

    def _load(self, number: Expr | int, dtype: str = "int16") -> Expr:
        """Vector ``number`` of the block's memory."""
        vector = self.memory[T.ramp((self.base + number) * self.channels, 1, self.channels)]
        return vector if dtype == "int16" else T.reinterpret(vector, dtype=f"{dtype}x{self.lanes}")

    def _save(self, number: Expr | int, vector: Expr) -> None:
        vector = T.reinterpret(vector, dtype=f"int16x{self.channels}")
        store(self.memory, [T.ramp((self.base + number) * self.channels, 1, self.channels)], vector)

    def _arrange_parameters(self) -> None:
        """Weights in pairs, bias and multiplier, in the order of the vectors' channels."""
        s = self.shape
        channels = T.ramp(self.first, 1, self.channels)
        none = T.broadcast(T.int16(0), self.channels)
        for column in range(s.kernel[1]):
            taps = [
                T.bind(T.cast(self.weight[r, column, channels], f"int16x{self.channels}"))
                for r in range(s.kernel[0])
            ]
            for index in range(row_period(s)):
                for pair in range(window_pairs(s, index)):
                    rows = [2 * pair + j - window_phase(s, index) for j in range(2)]
                    both = [taps[r] if 0 <= r < s.kernel[0] else none for r in rows]
                    self._save_pairs(self._tap(index, pair, column), both)
        for source, place in ((self.bias, self.first_start), (self.multiplier, self.first_scale)):
            values = T.bind(source[channels])
            for vector in range(2):
                lanes = [8 * (lane // 4) + 4 * vector + lane % 4 for lane in range(self.lanes)]
                self._save(place + vector, _shuffle([values], lanes))

    def _tap(self, index: int, pair: int, column: int) -> int:
        """The number of the first of two vectors."""
        return (
            self.first_tap
            + ((index * most_window_pairs(self.shape) + pair) * self.shape.kernel[1] + column) * 2
        )

    def _save_pairs(self, number: Expr | int, rows: list[Expr]) -> None:
        """Interleave two vectors of a block's channels, int16, into the vectors ``number`` and the next."""
        for vector in range(2):
            inside = [8 * quad + 4 * vector + i for quad in range(self.lanes // 4) for i in range(4)]
            lanes = [self.channels * row + lane for lane in inside for row in range(2)]
            self._save(number + vector, _shuffle(rows, lanes))

    def _pad_columns(self, kept: int) -> None:
        """Set the columns beside the image, which no pair changes, to the zero-point."""
        line, (left, right) = staged_columns(self.shape), self._columns
        for begin, end in ((0, left), (right, line)):
            if begin < end:
                with T.serial(0, kept) as place, T.serial(begin, end) as w:
                    self._save_pairs((place * line + w) * 2, [self.fill, self.fill])

    @property
    def _columns(self) -> tuple[int, int]:
        """Where the image begins and ends in a staged pair."""
        line, left = staged_columns(self.shape), self.shape.padding[1]
        return min(left, line), min(left + self.shape.width, line)

    def _stage(self, pair: Expr, image: Expr, top: Expr) -> None:
        """Interleave the rows of a pair of the task, those outside of the image being the zero-point."""
        s, (left, right) = self.shape, self._columns
        place = self._place(pair)
        row = T.bind(top * s.stride[0] - s.padding[0] + 2 * pair)

        def copy(inside: list[bool]) -> None:
            with T.serial(left, right) as w, self._each_block():
                rows = []
                for j in range(2):
                    at = (image * s.height + row + j) * s.width + w - left
                    pixel = self._widened(self.x[at, T.ramp(self.first, 1, self.channels)])
                    rows.append(T.bind(pixel) if inside[j] else self.fill)
                self._save_pairs(place + w * 2, rows)

        if left < right:
            _cases([tirx.all(row + j >= 0, row + j < s.height) for j in range(2)], copy)

    def _widened(self, pixel: Expr) -> Expr:
        """Bytes with zeros between them.

        As a cast, LLVM would rather interleave bytes and widen those, which takes more.
        """
        zeros = T.broadcast(T.uint8(0), self.channels)
        lanes = [half * self.channels + lane for lane in range(self.channels) for half in range(2)]
        return T.reinterpret(_shuffle([pixel, zeros], lanes), dtype=f"int16x{self.channels}")

    def _row(self, index: int, pairs: list[Expr], line: Expr) -> None:
        """An output row, whose results begin at pixel ``line``, from staged ``pairs``; ``index``: of a period."""
        s, columns = self.shape, self.tile.columns
        whole, rest = divmod(s.out_width, columns)
        with T.serial(0, whole) as part:
            self._tile(index, pairs, T.bind(part * columns), columns, line)
        if rest:
            self._tile(index, pairs, tirx.const(whole * columns, "int32"), rest, line)

    def _tile(self, index: int, pairs: list[Expr], left: Expr, columns: int, line: Expr) -> None:
        """``columns`` results: the sums of one vector of each are in registers at a time."""
        for column, value in enumerate(self._scaled(0, index, pairs, left, columns)):
            self._save(self.first_rounded + column, self._rounded(value))
        for column, value in enumerate(self._scaled(1, index, pairs, left, columns)):
            both = [self._load(self.first_rounded + column, self._kept), self._rounded(value)]
            store(
                self.result, [line + left + column, T.ramp(self.first, 1, self.channels)], self._finish(both)
            )

    def _scaled(self, vector: int, index: int, pairs: list[Expr], left: Expr, columns: int) -> Iterator[Expr]:
        """The sums of vector number ``vector`` of each column, as float32 times the multiplier."""
        s, lanes = self.shape, self.lanes
        sums = [T.bind(self._load(self.first_start + vector, "int32"))] * columns
        for p, pair in enumerate(pairs):
            for w in range((columns - 1) * s.stride[1] + s.kernel[1]):
                read = T.bind(self._load(pair + (left * s.stride[1] + w) * 2 + vector))
                for column, tap in windows(w, columns, s):
                    taps = self._load(self._tap(index, p, tap) + vector)
                    product = call_llvm(PMADDWD[lanes], f"int32x{lanes}", read, taps)
                    sums[column] = T.bind(_in_order(sums[column] + product, lanes))
        for total in sums:
            yield T.cast(total, f"float32x{lanes}") * self._load(self.first_scale + vector, "float32")

    @property
    def _kept(self) -> str:
        """The dtype of what waits for the other vector."""
        return "int32" if self.out.dtype == "uint8" else "float32"

    def _rounded(self, value: Expr) -> Expr:
        if self.out.dtype != "uint8":
            return value
        return tirx.call_llvm_pure_intrin(f"int32x{self.lanes}", "llvm.lrint", value)

    def _finish(self, vectors: list[Expr]) -> Expr:
        """A block of results in the order of channels.

        uint8 are ``requantize``'s: rounded values are narrowed to int16 with saturation and the zero-point is added
        with saturation; as it is 0 … 255, what both cut off lies outside 0 … 255 with and without it.
        """
        lanes, channels = self.lanes, self.channels
        if self.out.dtype != "uint8":
            order = [lanes * v + 4 * q + i for q in range(lanes // 4) for v in range(2) for i in range(4)]
            return activate(_shuffle(vectors, order), self.out)
        narrow = call_llvm(_PACKSSDW[lanes], f"int16x{channels}", *vectors)
        zero_point = T.broadcast(T.cast(self.grid[1], "int16"), channels)
        code = call_llvm("llvm.sadd.sat", f"int16x{channels}", narrow, zero_point)
        low, high = (T.broadcast(T.int16(bound), channels) for bound in (0, 255))
        return T.cast(tirx.max(tirx.min(code, high), low), f"uint8x{channels}")


def _in_order(sums: Expr, lanes: int) -> Expr:
    """The same int32, which LLVM takes for floats at this point: it would add products to each other first.

    That keeps more values than there are registers.
    """
    fenced = call_llvm(
        "llvm.arithmetic.fence", f"float32x{lanes}", T.reinterpret(sums, dtype=f"float32x{lanes}")
    )
    return T.reinterpret(fenced, dtype=f"int32x{lanes}")


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


def _shuffle(vectors: list[Expr], lanes: list[int]) -> Expr:
    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in lanes])
