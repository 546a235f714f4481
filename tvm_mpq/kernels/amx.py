"""Convolutions of bytes on AMX: which there are, how their rows lie, tiles, and when the kernel pays.

A tile of activations is sixteen rows at equal distances, so patches are multiplied where they lie:

    plain    1×1: the rows of the input; of a strided one those of a copy of what it reads
    flat     stride 1: the padded input as one list of pixels; of each line some results are of windows that wrap around
             to the next, and are left out
    lines    other strides: tiles of each output row by itself

A kernel row of a patch is one piece of memory, whatever its columns: the step of the reduction is its elements in equal
parts of at most 64.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tvm_mpq.kernels.amx_instructions import LANES, MOST_BYTES, ROWS, TILES
from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.divisors import divisors
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.tiles import shared_evenly

BLOCKINGS = ((2, 2), (1, 3), (3, 1), (1, 2), (2, 1), (1, 1))
"""Row and column tiles of results, with whose operands eight registers are enough."""
_LEAST_ROWS = 2 * ROWS
_TASKS = 8
_SECOND_CACHE = 2**18


@dataclass(frozen=True)
class AmxTile:
    """The decisions of the program.

    ``rows`` × ``columns`` tiles of results stay in registers through the reduction. A parallel task is ``row_groups`` ×
    ``column_groups`` of them.
    """

    rows: int
    columns: int
    row_groups: int
    column_groups: int


@dataclass(frozen=True)
class AmxGeometry:
    """The extents that follow from a shape; ``nibbles``: weights come two in a byte, and are unpacked for each task."""

    shape: ConvolutionShape
    nibbles: bool = False

    @property
    def step(self) -> int:
        """Elements of the reduction that one multiplication takes: as few steps as can be, then as little padding."""
        run, multiple = self.shape.run, 8 if self.nibbles else 4
        least = -(-run // MOST_BYTES)
        whole = [s for s in range(least, 2 * least) if run % (multiple * s) == 0]
        steps = whole[0] if whole else least
        return -(-run // (multiple * steps)) * multiple

    @property
    def row(self) -> Intrinsic:
        """Its record in the table of instructions."""
        weight = "uint8" if self.nibbles else "int8"
        words = self.step // 4
        return Intrinsic(
            "tdpbusd", "uint8", weight, "int32", LANES, self.step, TILES, "tdpbusd", words, self.nibbles
        )

    @property
    def steps(self) -> int:
        """Of a kernel row."""
        return -(-self.shape.run // self.step)

    @property
    def blocks(self) -> int:
        """Column tiles that hold all output channels."""
        return -(-self.shape.out_channels // LANES)

    @property
    def kind(self) -> Literal["plain", "flat", "lines"]:
        """How rows lie (see above)."""
        if self.shape.is_pointwise():
            return "plain"
        return "flat" if self.shape.stride == (1, 1) else "lines"

    @property
    def line(self) -> int:
        """Columns of the padded input."""
        return self.shape.width + self.shape.padding[1] + self.shape.padding[3]

    @property
    def height(self) -> int:
        """Rows of the padded input."""
        return self.shape.height + self.shape.padding[0] + self.shape.padding[2]

    @property
    def row_tiles(self) -> int:
        """Tiles of sixteen rows."""
        shape = self.shape
        if self.kind == "plain":
            return -(-shape.rows // ROWS)
        if self.kind == "lines":
            return shape.batch * shape.out_height * -(-shape.out_width // ROWS)
        last = ((shape.batch - 1) * self.height + shape.out_height - 1) * self.line + shape.out_width
        return -(-last // ROWS)


def amx_fits(geometry: AmxGeometry) -> bool:
    """Whether the program can compute it: one group, undilated columns, and no byte past the input is read."""
    shape = geometry.shape
    if shape.groups > 1 or shape.dilation != (1, 1) or shape.rows < ROWS:
        return False
    return not shape.is_plain_matrix() or shape.run % geometry.step == 0


def amx_pays(shape: ConvolutionShape) -> bool:
    """Whether there are rows and channels enough to fill tiles."""
    return shape.rows >= _LEAST_ROWS and shape.out_channels >= LANES and shape.run >= LANES


def default_amx_tile(geometry: AmxGeometry) -> AmxTile:
    """The blocking that loads least and pads least, and tasks that share the work of two threads."""
    tiles, blocks = geometry.row_tiles, geometry.blocks

    def cost(blocking: tuple[int, int]) -> float:
        rows, columns = blocking
        padded = -(-tiles // rows) * rows * -(-blocks // columns) * columns
        # A multiplication takes sixteen cycles, a load eight; half of the loads hide behind the multiplications.
        return padded * (16 + 4 * (1 / rows + 1 / columns))

    rows, columns = min(BLOCKINGS, key=cost)
    row_groups, column_groups = -(-tiles // rows), -(-blocks // columns)
    weights = blocks * LANES * geometry.shape.reduction(geometry.step)
    if weights > _SECOND_CACHE or row_groups < _TASKS:
        tasks = -(-_TASKS // row_groups) if weights <= _SECOND_CACHE else min(_TASKS, column_groups)
        each = max(d for d in divisors(column_groups) if column_groups // d >= min(tasks, column_groups))
        if column_groups // each >= 4 or row_groups < 2:
            return AmxTile(rows, columns, row_groups, each)
        return AmxTile(rows, columns, -(-row_groups // 2), each)
    return AmxTile(rows, columns, -(-row_groups // _TASKS), column_groups)


def amx_tiles(geometry: AmxGeometry) -> list[AmxTile]:
    """Every tile of the program worth trying: its tasks share two threads evenly."""
    return shared_evenly(_amx_tiles(geometry))


def _amx_tiles(geometry: AmxGeometry) -> Iterator[tuple[int, AmxTile]]:
    for rows, columns in BLOCKINGS:
        row_groups, column_groups = -(-geometry.row_tiles // rows), -(-geometry.blocks // columns)
        for tasks in (1, 2, 4, 8, 16, 32):
            each = -(-row_groups // tasks)
            for count in divisors(column_groups):
                yield (
                    -(-row_groups // each) * (column_groups // count),
                    AmxTile(rows, columns, each, count),
                )


def copied_bytes(geometry: AmxGeometry) -> int:
    """Bytes of the copy that is multiplied, with what the last tile's rows read past it."""
    shape = geometry.shape
    if geometry.kind == "plain":
        return shape.rows * shape.in_channels + MOST_BYTES
    past = (ROWS + shape.kernel[1]) * shape.stride[1] * shape.in_channels + MOST_BYTES
    return shape.batch * geometry.height * geometry.line * shape.in_channels + past
