"""Default tiles from a model of registers and caches, good without tuning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tvm_mpq.kernels import neon
from tvm_mpq.kernels.convolution import ConvolutionShape, packed_weight_shape
from tvm_mpq.kernels.divisors import divisors
from tvm_mpq.kernels.intrinsic import Intrinsic

T = TypeVar("T")


@dataclass(frozen=True)
class ConvolutionTile:
    """The decisions of the convolution template.

    A tile of ``rows`` × ``blocks``·lanes results stays in registers through the whole reduction, which is unrolled
    ``unroll`` steps. A parallel task is ``row_tiles`` × ``column_tiles`` tiles. ``staged``: its patches are copied to
    the cache before, or for the whole tensor when ``stage_whole``; else rows are read in place.
    """

    rows: int
    blocks: int
    row_tiles: int
    column_tiles: int
    unroll: int
    staged: bool
    stage_whole: bool = False


def _multiples(of: int, most: int) -> range:
    return range(of, most + of, of)


def balanced(sizes: Iterable[int], units: int, threads: int) -> int:
    """The task size of ``sizes`` (divisors of ``units``) whose longest thread is shortest, the largest of equals.

    TVM gives each thread an equal number of tasks, give or take one.
    """
    return min(sizes, key=lambda size: (-(-(units // size) // threads) * size, -size))


def default_convolution_tile(
    shape: ConvolutionShape, intrinsic: Intrinsic, in_place: int, threads: int = 2
) -> ConvolutionTile:
    """The tile with the least modelled cost a result: multiplies, loads, padding rows and staging.

    ``in_place``: what the rows of a tile must divide for the kernel to read its input without staging it; 0: it cannot.
    """
    blocks, steps = packed_weight_shape(shape, intrinsic)[1:3]
    best = min(
        (_cost(shape, intrinsic, rows, nr, staged, threads), -rows * nr, rows, nr, staged)
        for staged in ((True, False) if in_place else (True,))
        for nr in divisors(blocks)
        for rows in _multiples(intrinsic.rows, min(shape.rows, 16))
        if _registers(intrinsic, rows, nr) <= intrinsic.registers and (staged or in_place % rows == 0)
    )
    rows, nr, staged = best[2:]
    row_tiles, column_tiles = _task(shape, intrinsic, rows, nr, staged, threads)
    # Floats need the loop overhead hidden; integers gain nothing from more and grow the code.
    # A step of NEON is up to sixteen products long already.
    if not staged:
        steps //= shape.kernel[0]
    unrolls = (
        (1,)
        if intrinsic.family in neon.FAMILIES or _fills_registers(intrinsic, rows, nr)
        else (1, 2, 4)
        if intrinsic.accumulator == "float32"
        else (1, 2)
    )
    unroll = max(d for d in unrolls if steps % d == 0)
    stage_whole = staged and column_tiles < blocks // nr
    return ConvolutionTile(rows, nr, row_tiles, column_tiles, unroll, staged, stage_whole)


def _weight_bytes(shape: ConvolutionShape, intrinsic: Intrinsic) -> int:
    elements = packed_weight_shape(shape, intrinsic)[1] * intrinsic.lanes * shape.reduction(intrinsic.group)
    return elements * BYTES[intrinsic.weight] // (1 + intrinsic.nibbles)


def _task(
    shape: ConvolutionShape, intrinsic: Intrinsic, rows: int, nr: int, staged: bool, threads: int
) -> tuple[int, int]:
    """Row tiles and column tiles of a task."""
    tiles, columns = -(-shape.rows // rows), packed_weight_shape(shape, intrinsic)[1] // nr
    tile_bytes = rows * shape.reduction(intrinsic.group) * BYTES[intrinsic.activation]
    weights = _weight_bytes(shape, intrinsic)
    row_tiles = _row_tiles(shape, intrinsic, rows, staged, threads)
    tasks = 4 * threads
    # Where rows are few and channels many, tasks take all rows and part of the weights: each weight is read once.
    all_rows = tiles * tile_bytes <= _WHOLE_BYTES and columns >= tasks
    by_columns = tiles // row_tiles < 2 * threads or all_rows
    if intrinsic.from_memory and columns >= tasks and not by_columns:
        # Or where that moves less through the second cache: patches once a column tile, not weights once a task.
        by_columns = all_rows = weights > _SECOND_CACHE and columns * tile_bytes < weights / row_tiles
    if all_rows:
        row_tiles = tiles
    elif weights > _SECOND_CACHE and not intrinsic.from_memory and intrinsic.family not in neon.FAMILIES:
        row_tiles = _row_tiles_of_large_weights(shape, intrinsic, rows, columns, staged)
        by_columns = tiles // row_tiles < tasks
        tasks = -(-tasks * row_tiles // tiles)
    if not by_columns:
        return row_tiles, columns
    return row_tiles, max(d for d in divisors(columns) if columns // d >= min(columns, tasks))


def _row_tiles_of_large_weights(
    shape: ConvolutionShape, intrinsic: Intrinsic, rows: int, columns: int, staged: bool
) -> int:
    """Row tiles of a task where all weights come from the last cache once a task: what moves least from there."""
    tiles = -(-shape.rows // rows)
    patches = rows * shape.reduction(intrinsic.group) * BYTES[intrinsic.activation]
    if not staged and not shape.is_pointwise():
        pixels = shape.batch * shape.height * shape.width
        patches = pixels * shape.in_channels * BYTES[intrinsic.activation] // tiles

    def moved(size: int) -> int:
        again = 1 if size * patches <= _SECOND_CACHE else columns
        return _weight_bytes(shape, intrinsic) * (tiles // size) + patches * tiles * again

    return min(_whole_lines(shape, rows, staged), key=lambda size: (moved(size), size))


def _whole_lines(shape: ConvolutionShape, rows: int, staged: bool) -> list[int]:
    """The numbers of row tiles that share them out.

    In place those that are whole output rows or parts of one: the place of others' patches is a division in the loop.
    """
    sizes = divisors(-(-shape.rows // rows))
    if staged or shape.is_plain_matrix():
        return sizes
    return [d for d in sizes if d * rows % shape.out_width == 0 or shape.out_width % (d * rows) == 0]


def _row_tiles(shape: ConvolutionShape, intrinsic: Intrinsic, rows: int, staged: bool, threads: int) -> int:
    """Tiles of ``rows`` rows of a task.

    Its patches fit the first cache twice over, and there are several tasks a thread so that none waits long.
    """
    tiles = -(-shape.rows // rows)
    tile_bytes = rows * shape.reduction(intrinsic.group) * BYTES[intrinsic.activation]
    wanted = max(1, min(_TASK_BYTES // tile_bytes, tiles // (4 * threads)))
    return balanced([d for d in _whole_lines(shape, rows, staged) if d <= wanted], tiles, threads)


def convolution_tiles(shape: ConvolutionShape, intrinsic: Intrinsic, in_place: int) -> list[ConvolutionTile]:
    """Every tile of the template worth trying: its results fit the registers, its tasks the cache and two threads.

    Left out are tiles that multiply less than a third as much a step as the registers allow.
    """
    return shared_evenly(_convolution_tiles(shape, intrinsic, in_place))


def _convolution_tiles(
    shape: ConvolutionShape, intrinsic: Intrinsic, in_place: int
) -> Iterator[tuple[int, ConvolutionTile]]:
    """Each tile with the number of its tasks."""
    blocks, steps = packed_weight_shape(shape, intrinsic)[1:3]
    pairs = [
        (rows, nr)
        for nr in divisors(blocks)
        for rows in _multiples(intrinsic.rows, min(shape.rows, _MOST_ROWS))
        if _registers(intrinsic, rows, nr) <= intrinsic.registers
        and -(-shape.rows // rows) * rows <= _MOST_PADDING * shape.rows
    ]
    most = max(rows * nr for rows, nr in pairs)
    for rows, nr in pairs:
        if 3 * rows * nr < most:
            continue
        tiles, columns = -(-shape.rows // rows), blocks // nr
        tile_bytes = rows * shape.reduction(intrinsic.group) * BYTES[intrinsic.activation]
        in_lines = _whole_lines(shape, rows, False) if in_place and in_place % rows == 0 else []
        unrolls = (1,) if _fills_registers(intrinsic, rows, nr) else (1, 2, 4, 8)
        for row_tiles in divisors(tiles):
            fits = row_tiles == 1 or row_tiles * tile_bytes <= _MOST_TASK_BYTES
            for column_tiles in divisors(columns):
                tasks = shape.groups * (tiles // row_tiles) * (columns // column_tiles)
                for unroll in (u for u in unrolls if steps % u == 0 and rows * nr * u <= _MOST_UNROLLED):
                    if row_tiles in in_lines and steps // shape.kernel[0] % unroll == 0:
                        yield tasks, ConvolutionTile(rows, nr, row_tiles, column_tiles, unroll, False)
                    if fits:
                        yield tasks, ConvolutionTile(rows, nr, row_tiles, column_tiles, unroll, True)
                    if column_tiles < columns:
                        yield tasks, ConvolutionTile(rows, nr, row_tiles, column_tiles, unroll, True, True)


def shared_evenly(tiles: Iterable[tuple[int, T]]) -> list[T]:
    """The tiles whose equal tasks, so many each, give neither of two threads a sixth more than its half.

    Where no tile is so even, those that are as even as can be.
    """
    pairs = [(-(-tasks // 2) * 2 / tasks, tile) for tasks, tile in tiles]
    most = max(7 / 6, min((share for share, _ in pairs), default=1.0))
    return [tile for share, tile in pairs if share <= most]


_MOST_ROWS = 24
_MOST_PADDING = 1.35
_MOST_TASK_BYTES = 2**20
_MOST_UNROLLED = 128


def _registers(intrinsic: Intrinsic, rows: int, blocks: int) -> int:
    """The accumulators, the weights, the broadcast activation, and a product where an instruction adds it.

    ``pmaddubsw`` takes a vector of ones instead of weights. Where those are no operands in memory it does as well with
    one result on the stack: 14 rows divide more maps than 13.
    """
    if intrinsic.family == "pmaddubsw":
        return rows * blocks + (3 if intrinsic.from_memory else 2)
    if intrinsic.family in neon.FAMILIES:
        return neon.registers(
            intrinsic.family, intrinsic.words, rows, blocks, intrinsic.nibbles, intrinsic.multiplied
        )
    return rows * blocks + blocks + 1 + (intrinsic.family == "pmaddwd")


def _fills_registers(intrinsic: Intrinsic, rows: int, blocks: int) -> bool:
    """Whether AVX-512 has no two registers left: of two steps LLVM then does a row's first, with sums on the stack."""
    return intrinsic.lanes == 16 and _registers(intrinsic, rows, blocks) + 2 > intrinsic.registers


_TASK_BYTES = 65536
_WHOLE_BYTES = 131072
_SECOND_CACHE = 262144
"""What of the second-level cache the weights of a kernel may fill, beside its patches and results."""
_FIRST_CACHE = 24576
"""What of the first-level cache weights may fill; more come from the second, 30 bytes a cycle."""
_WIDE_SECOND_CACHE = 18
"""Bytes a cycle that vectors of 64 bytes get from it: a loop with four streams of them is slower than one with two."""
BYTES = {"float32": 4, "float16": 2, "float16_bits": 2, "bfloat16": 2, "int16": 2, "uint8": 1, "int8": 1}


def _cost(
    shape: ConvolutionShape, intrinsic: Intrinsic, rows: int, blocks: int, staged: bool, threads: int
) -> float:
    tile, words = rows * blocks, intrinsic.words
    padded = -(-shape.rows // rows) * rows / shape.rows
    staging = 1 + 3 / shape.out_channels if staged else 1.0
    if intrinsic.from_memory:
        # Two multiplications a cycle, which eight sums keep busy. Beyond them: a load a row of activations, a panel of
        # weights that the first cache does not hold, shared by the tile's rows, and the loop's ends. More sums than
        # ten leave no register for what finishes them.
        panel = blocks * intrinsic.lanes * shape.reduction(intrinsic.group)
        steps = shape.reduction(intrinsic.group) / intrinsic.group
        overhead = 0.1 / blocks + (0.2 / rows if panel > _FIRST_CACHE else 0.0) + 4 / (steps * tile)
        idle = 0.05 * max(0, 8 - tile) + 0.01 * max(0, tile - 10)
        return padded * staging * (1 + overhead + idle)
    # The instructions of a step: multiplies (and one to widen), additions, and what unpacks the weights.
    multiplies = tile * (words + (intrinsic.family == "pmaddubsw"))
    others = 0.0 if intrinsic.family in (None, "vpdpbusd", "vdpbf16ps") else tile * words
    others += 2.5 * blocks * words * intrinsic.nibbles + 3 * blocks * intrinsic.multiplied
    if intrinsic.activation == "float32" and intrinsic.weight != "float32":
        others += 2 * blocks  # to widen a vector of weights
    loads = words * (rows + blocks * (0.5 if intrinsic.nibbles else 1.0))
    if intrinsic.family == "pmaddubsw":
        loads += 0.5 * words * blocks  # whole vectors from memory, in each row of the tile
    # Two loads, two multiplies and some three of all a cycle; short accumulation chains do not hide the latency.
    cycles = max(multiplies / 2, (multiplies + others) / 3.3, loads / 2)
    cycles = max(cycles, 4.0 if intrinsic.accumulator == "float32" else 1.0)
    step_bytes = (
        blocks * intrinsic.lanes * intrinsic.group * BYTES[intrinsic.weight] // (1 + intrinsic.nibbles)
    )
    if _weight_bytes(shape, intrinsic) > _FIRST_CACHE:
        cycles = max(cycles, step_bytes / (_WIDE_SECOND_CACHE if intrinsic.lanes == 16 else 30))
    cycles += 0.08 * loads
    if intrinsic.family in neon.FAMILIES:
        cycles = neon.cycles(intrinsic.family, words, rows, blocks, intrinsic.nibbles)
        steps = shape.reduction(intrinsic.group) // intrinsic.group
        cycles += neon.outside(intrinsic.family, rows, blocks) / steps
        # Of so few steps LLVM makes no loop, and activations that all tiles of a task share go to memory, a vector for
        # each word.
        if steps <= 4 and _row_tiles(shape, intrinsic, rows, staged, threads) == 1 < shape.rows // rows:
            cycles *= 1.1
    return cycles / tile * padded * staging
