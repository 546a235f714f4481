"""Matrix multiplication of float32 rows by 2- and 4-bit weights: geometry, tiles and the choice of instruction.

    y[m, n] = activation(scale[n] · Σ_g mult[g, n] · Σ_{k in g} x[m, k] · q[k, n] + bias[n])

Eight-bit multiplications do a float's work, for integer sums are what processors do best. Each row of x is cut into
blocks of 32 elements, and each block becomes integers of 23 bits with one power of two for them all:

    x[m, k] ≈ 2^e · v[k],   |v| ≤ 2^22,   v = d0 + 2^8 · d1 + 2^16 · d2   with signed 8-bit digits

v is x rounded to 2^-22 of the largest magnitude of its block, as good as the rounding of a float sum. The three
sums Σ d_i · (q + offset) are exact (32 · 15 · 128 fits the int16 halves of ``vpmaddubsw``'s accumulators, and int32
anyway), so is their combination less offset · Σ v, and only sums over blocks are sums of floats.
A block with an infinity or a NaN makes the whole row NaN. Where rows are many, floats are multiplied after all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm_mpq.errors import MpqError
from tvm_mpq.kernels.divisors import divisors
from tvm_mpq.kernels.tiles import shared_evenly

BLOCK = 32
"""Elements of the reduction that share an exponent, and the least size of a group of weights."""
DIGITS = 3
_TASK_BYTES = 131072
"""Bytes of rows or their digits that a task goes through for each column block: they stay in the second-level cache."""
_FEW_ROWS = 6
"""With more rows, widening the weights to floats once costs less than multiplying by three digits (on Zen 3)."""
_PANEL_ROWS = 96
"""Rows that make up for widening a panel."""


@dataclass(frozen=True)
class DotInstruction:
    """How unsigned weights meet signed digits: ``family`` is ``pmaddubsw`` (int16), ``vpdpbusd`` or ``neon.dot``'s.

    ``lanes`` int32 results a vector; ``rows`` of two vectors each for three digits stay in registers, ``panel_rows``
    of two vectors of floats.
    """

    family: str
    lanes: int
    rows: int
    panel_rows: int

    @property
    def accumulator(self) -> str:
        """The dtype that one instruction adds to."""
        return "int16" if self.family == "pmaddubsw" else "int32"


INSTRUCTIONS = {
    "amx": DotInstruction("vpdpbusd", 16, 4, 12),
    "avx512bf16": DotInstruction("vpdpbusd", 16, 4, 12),
    "avx512vnni": DotInstruction("vpdpbusd", 16, 4, 12),
    "avx512": DotInstruction("pmaddubsw", 16, 4, 12),
    "avxvnni": DotInstruction("vpdpbusd", 8, 2, 6),
    "avx2": DotInstruction("pmaddubsw", 8, 2, 6),
    "generic": DotInstruction("pmaddubsw", 4, 2, 6),
    "i8mm": DotInstruction("sdot", 4, 4, 12),
    "dotprod": DotInstruction("sdot", 4, 4, 12),
    "neon": DotInstruction("smull", 4, 4, 12),
    "neon32": DotInstruction("plain", 4, 2, 6),
    "portable": DotInstruction("plain", 4, 2, 6),
}


@dataclass(frozen=True)
class WeightOnlyGeometry:
    """The extents of one multiplication.

    ``rows`` × ``in_channels`` activations, ``out_channels`` columns, weights of ``bits`` (2 or 4) with a multiplier
    for each ``group`` elements of the reduction (0: only the column's scale).
    """

    rows: int
    in_channels: int
    out_channels: int
    bits: int
    group: int
    instruction: str

    def __post_init__(self) -> None:
        if self.bits not in (2, 4):
            raise ValueError(f"weights of {self.bits} bits have no kernel that unpacks them")
        if self.group % BLOCK:
            raise ValueError(f"groups of {self.group} are no multiple of {BLOCK}")
        if self.instruction not in INSTRUCTIONS:
            known = ", ".join(INSTRUCTIONS)
            raise MpqError(f"unknown instruction {self.instruction!r} in the target: use one of {known}")

    @property
    def dot(self) -> DotInstruction:
        """The row of the table."""
        return INSTRUCTIONS[self.instruction]

    @property
    def columns(self) -> int:
        """Columns of a block: two vectors of results, which share each activation that is loaded."""
        return 2 * self.dot.lanes

    @property
    def blocks(self) -> int:
        """Column blocks that hold all columns."""
        return -(-self.out_channels // self.columns)

    @property
    def steps(self) -> int:
        """Blocks of 32 along the reduction, the last one padded with zeros."""
        return -(-self.in_channels // BLOCK)

    @property
    def offset(self) -> int:
        """What is added to a code before it is stored."""
        return int(2 ** (self.bits - 1))

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """[column blocks, steps, bytes] of the packed weights."""
        return (self.blocks, self.steps, BLOCK * self.columns * self.bits // 8)

    @property
    def multiplier_shape(self) -> tuple[int, int, int]:
        """[column blocks, groups, columns] of the groups' multipliers; no groups, none."""
        groups = -(-self.steps * BLOCK // self.group) if self.group else 0
        return (self.blocks, groups, self.columns)


@dataclass(frozen=True)
class WeightOnlyTile:
    """A task is ``row_tiles`` tiles of ``rows`` rows × ``column_blocks`` column blocks (which divide all).

    ``panel``: weights are widened to floats in the cache, for many rows; else they meet digits in registers.
    """

    rows: int
    row_tiles: int
    column_blocks: int
    panel: bool = False


def default_weight_only_tile(geometry: WeightOnlyGeometry, threads: int = 2) -> WeightOnlyTile:
    """Tasks by columns where rows are few, so that each weight is read once; else by rows too."""
    panel = geometry.rows > _FEW_ROWS
    if panel:
        rows = min(range(1, geometry.dot.panel_rows + 1), key=lambda r: (-(-geometry.rows // r) * r, -r))
        rows = rows if rows >= 4 else geometry.dot.panel_rows
        most = max(_PANEL_ROWS, _TASK_BYTES // (4 * geometry.in_channels)) // rows
    else:
        rows = min(geometry.dot.rows, geometry.rows)
        most = _TASK_BYTES // (DIGITS * BLOCK * geometry.steps * rows)
    tiles = -(-geometry.rows // rows)
    row_tiles = -(-tiles // -(-tiles // max(1, most)))
    row_tasks = -(-tiles // row_tiles)
    # Several tasks a thread, so that none waits long.
    wanted = min(4 * threads, geometry.blocks * row_tasks)
    column_blocks = max(d for d in divisors(geometry.blocks) if geometry.blocks // d * row_tasks >= wanted)
    return WeightOnlyTile(rows, row_tiles, column_blocks, panel)


def weight_only_tiles(geometry: WeightOnlyGeometry) -> list[WeightOnlyTile]:
    """Every tile of the program worth trying: its results fit the registers, its tasks two threads."""
    return shared_evenly(_weight_only_tiles(geometry))


def _weight_only_tiles(geometry: WeightOnlyGeometry) -> Iterator[tuple[int, WeightOnlyTile]]:
    """Each tile with the number of its tasks."""
    most = {False: geometry.dot.rows, True: geometry.dot.panel_rows}
    ways = [panel for panel in (False, True) if not panel or geometry.rows > 1]
    for panel, rows in [(p, r) for p in ways for r in range(1, min(most[p], geometry.rows) + 1)]:
        tiles = -(-geometry.rows // rows)
        for row_tiles in sorted({-(-tiles // parts) for parts in range(1, min(tiles, _MOST_ROW_TASKS) + 1)}):
            for column_blocks in divisors(geometry.blocks):
                tasks = -(-tiles // row_tiles) * (geometry.blocks // column_blocks)
                yield tasks, WeightOnlyTile(rows, row_tiles, column_blocks, panel)


_MOST_ROW_TASKS = 64
