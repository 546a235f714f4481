"""Tiles of the depthwise convolution by products of row pairs (``pair_depthwise``), and where its windows lie.

An output row h has its window in pairs from h·stride // 2 on, beginning h·stride mod 2 rows into the first: every
``period`` rows windows lie in their pairs as before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.divisors import divisors
from tvm_mpq.kernels.tiles import shared_evenly

_MOST_TAPS = 64
"""Each is written out for each column of a tile."""
_INPUT_BYTES = 256 * 1024
"""What stays in the second cache."""
_NEAR_MEMORY, _MOST_MEMORY = 32 * 1024, 112 * 1024
"""Of a task, in bytes: what stays in the first cache, and the most."""
_SHARING = 6
"""Blocks beyond which cache lines of the input are hardly read less often."""
_TASKS = 4
"""For a few threads."""
_TILE_COST = 8
"""Instructions that a tile of columns begins with."""


@dataclass(frozen=True)
class PairDepthwiseTile:
    """``columns`` results of a vector are kept in registers.

    A parallel task makes ``rows`` output rows of ``blocks`` blocks of channels, whose input it stages together.
    """

    columns: int
    rows: int
    blocks: int = 1


def pair_lanes(shape: ConvolutionShape, lanes: int) -> int | None:
    """The results of a vector, at most ``lanes``, or None where there is no such kernel.

    Each channel is read by one output, and a window has rows that are neighbours. Wide vectors have to waste few
    channels.
    """
    plain = shape.in_channels == shape.out_channels and shape.dilation == (1, 1)
    if not plain or shape.kernel[0] == 1 or shape.kernel[0] * shape.kernel[1] > _MOST_TAPS:
        return None
    channels = shape.out_channels
    for fewer in (16, 8):
        padded = -(-channels // (2 * fewer)) * 2 * fewer
        if fewer <= lanes and channels >= 2 * fewer and (fewer == 8 or padded <= 1.25 * channels):
            return fewer
    return None


def default_pair_tile(shape: ConvolutionShape, lanes: int, registers: int) -> PairDepthwiseTile:
    """Columns of the fewest instructions a row, blocks that share cache lines, rows of little staging, some tasks.

    Blocks whose memory stays in the first cache; of an input that comes from farther than the second one, more.
    """
    far = shape.height * shape.width * shape.in_channels > _INPUT_BYTES
    fitting = [1, *_fitting_blocks(shape, lanes, _MOST_MEMORY if far else _NEAR_MEMORY)]
    blocks = max(count for count in fitting if far or count <= _SHARING)

    def cost(tile: PairDepthwiseTile) -> tuple[float, ...]:
        return (
            _instructions(shape, tile.columns),
            max(tile.blocks, blocks) / min(tile.blocks, blocks),
            _tasks(shape, lanes, tile.rows, tile.blocks) < _TASKS,
            _staging(shape, tile.rows),
        )

    return min(pair_tiles(shape, lanes, registers), key=cost)


def _fitting_blocks(shape: ConvolutionShape, lanes: int, most: int) -> list[int]:
    """How many blocks a task may have whose memory is ``most`` bytes at most."""
    size = (
        turn_pairs(shape)[0] * staged_columns(shape) * 2
        + row_period(shape) * most_window_pairs(shape) * shape.kernel[1] * 2
    )
    blocks = -(-shape.out_channels // (2 * lanes))
    return [count for count in divisors(blocks) if count * size * lanes * 4 <= most]


def _tasks(shape: ConvolutionShape, lanes: int, rows: int, blocks: int) -> int:
    return shape.batch * (shape.out_height // rows) * (-(-shape.out_channels // (2 * lanes)) // blocks)


def _instructions(shape: ConvolutionShape, columns: int) -> float:
    """For an output row of one vector, without what no tile changes: loads, and what a column tile begins with."""
    tiles = [columns] * (shape.out_width // columns)
    tiles += [shape.out_width % columns] if shape.out_width % columns else []
    taps = most_window_pairs(shape) * shape.kernel[1]
    reads = [most_window_pairs(shape) * ((count - 1) * shape.stride[1] + shape.kernel[1]) for count in tiles]
    return sum(reads) + len(tiles) * (taps + _TILE_COST)


def _staging(shape: ConvolutionShape, rows: int) -> float:
    """Staged pairs an output row, those that come from a farther cache counted twice."""
    pairs, size = staged_pairs(shape, rows), task_input(shape, rows)
    return pairs * (1 + max(0.0, 1 - _INPUT_BYTES / size)) / rows


def pair_tiles(shape: ConvolutionShape, lanes: int, registers: int) -> list[PairDepthwiseTile]:
    """Every tile whose sums fit the registers beside a row of weights, and whose memory fits the cache."""
    most = max(1, min(registers // 2, registers - 3 - shape.kernel[1]))
    return shared_evenly(
        (_tasks(shape, lanes, rows, blocks), PairDepthwiseTile(columns, rows, blocks))
        for columns in range(1, min(most, shape.out_width) + 1)
        for rows in divisors(shape.out_height)
        for blocks in dict.fromkeys([1, *_fitting_blocks(shape, lanes, _MOST_MEMORY)])
    )


def staged_pairs(shape: ConvolutionShape, rows: int) -> int:
    """Pairs of rows that a task of ``rows`` output rows stages."""
    return -(-((rows - 1) * shape.stride[0] + shape.kernel[0]) // 2)


def task_input(shape: ConvolutionShape, rows: int) -> int:
    """Bytes of the input of all channels that the tasks of ``rows`` output rows read, one block after the other."""
    return 2 * staged_pairs(shape, rows) * shape.width * shape.in_channels


def row_period(shape: ConvolutionShape) -> int:
    """After how many output rows windows lie in their pairs as before."""
    return 2 // math.gcd(2, shape.stride[0])


def window_pairs(shape: ConvolutionShape, index: int) -> int:
    """Pairs that the window of an output row touches; ``index`` says which row of a period."""
    return -(-(window_phase(shape, index) + shape.kernel[0]) // 2)


def mean_pairs(shape: ConvolutionShape) -> float:
    """Pairs of rows that the window of an output row touches, on average."""
    period = row_period(shape)
    return sum(window_pairs(shape, index) for index in range(period)) / period


def most_window_pairs(shape: ConvolutionShape) -> int:
    """Of any row of a period."""
    return max(window_pairs(shape, index) for index in range(row_period(shape)))


def window_phase(shape: ConvolutionShape, index: int) -> int:
    """Where in its first pair the window of row ``index`` of a period begins."""
    return index * shape.stride[0] % 2


def turn_pairs(shape: ConvolutionShape) -> tuple[int, int]:
    """How many pairs the windows of a period of rows touch, and how many further those of the next period begin."""
    period, stride = row_period(shape), shape.stride[0]
    return max(i * stride // 2 + window_pairs(shape, i) for i in range(period)), period * stride // 2


def staged_columns(shape: ConvolutionShape) -> int:
    """Columns of a staged pair."""
    return (shape.out_width - 1) * shape.stride[1] + shape.kernel[1]
