"""Default tiles from a model of registers and caches, good without tuning."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_mpq.kernels.convolution import ConvolutionShape, packed_weight_shape
from tvm_mpq.kernels.intrinsic import Intrinsic


@dataclass(frozen=True)
class ConvolutionTile:
    """The decisions of the convolution template.

    A tile of ``rows`` × ``blocks``·lanes results stays in registers through the whole reduction, which is unrolled
    ``unroll`` steps. A parallel task is ``row_tiles`` × ``column_tiles`` tiles; its patches are staged in the cache
    before, or for the whole tensor when ``stage_whole``.
    """

    rows: int
    blocks: int
    row_tiles: int
    column_tiles: int
    unroll: int
    stage_whole: bool


def _divisors(value: int) -> list[int]:
    return [d for d in range(1, value + 1) if value % d == 0]


def default_convolution_tile(shape: ConvolutionShape, intrinsic: Intrinsic, staged: bool, threads: int = 2) -> ConvolutionTile:
    """The tile with the least modelled cost: instructions a result, counting loads, padding rows and the epilogue."""
    _, blocks, steps, _, _ = packed_weight_shape(shape, intrinsic)
    best = min(
        (
            (_cost(shape, intrinsic, rows, nr, staged), -rows * nr, rows, nr)
            for nr in _divisors(blocks)
            for rows in range(1, min(shape.rows, 16) + 1)
            # One register for the broadcast activation, one for a product, the weights and the accumulators.
            if rows * nr + nr + 2 <= intrinsic.registers and (staged or shape.rows % rows == 0)
        ),
    )
    rows, nr = best[2], best[3]
    tiles = -(-shape.rows // rows)
    columns = blocks // nr
    # A task stages about 32 KB, and there are several tasks a thread so that none waits long at the end.
    stage_bytes = rows * shape.reduction(intrinsic.group) * (2 if intrinsic.activation == "int16" else 4)
    wanted = max(1, min(65536 // max(stage_bytes, 1), tiles // (4 * threads)))
    row_tiles = max(d for d in _divisors(tiles) if d <= wanted)
    few = tiles // row_tiles < 2 * threads
    column_tiles = max(d for d in _divisors(columns) if columns // d >= min(columns, 4 * threads)) if few else columns
    unroll = max(d for d in (1, 2, 4) if steps % d == 0)
    return ConvolutionTile(rows, nr, row_tiles, column_tiles, unroll, stage_whole=few and columns > column_tiles)


def _cost(shape: ConvolutionShape, intrinsic: Intrinsic, rows: int, blocks: int, staged: bool) -> float:
    multiplies = rows * blocks
    loads = rows + blocks
    padded = -(-shape.rows // rows) * rows / shape.rows
    # Two loads and two multiplies a cycle; short accumulation chains do not hide the multiplier's latency.
    cycles = max(multiplies / 2, loads / 2, 4.0 if intrinsic.accumulator == "float32" else 1.0)
    cycles += 0.08 * loads
    return cycles / multiplies * padded
