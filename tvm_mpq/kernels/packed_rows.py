"""Matrix multiplication of one or few 8-bit rows by 4-bit codes: geometry and tiles.

Such a multiplication is bound by reading weights and by unpacking them. Two codes q lie in a byte as q + 8, which no
instruction has to make signed when they are the *unsigned* operand and the activations, less 128, the signed one:

    Σ q · (x − 128) = Σ (q + 8) · (x − 128) − Σ 8 · (x − 128)

The last sum is the same for all columns, and what 128 adds is part of the bias. A step is 64 elements of the
reduction, or 32 that share a factor. Each int16 half of ``vpmaddubsw``'s sums over a step is then at most 32 · 7 · 128
once the last sum is subtracted: it may wrap around on the way, and is widened once a step.

Weights of a block of columns lie together in the order of the reduction, so that a task reads one stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tvm_mpq.kernels.divisors import divisors
from tvm_mpq.kernels.intrinsic import INTEGER, Intrinsic
from tvm_mpq.kernels.tiles import balanced, shared_evenly
from tvm_mpq.kernels.weight_only import INSTRUCTIONS, DotInstruction

INPUT_OFFSET = 128
"""What the kernel subtracts from its activations; the bias has to make up for it."""
MOST_ROWS = 4
"""With more rows, unpacking is a small part of the work."""
LEAST_CHANNELS = 64
"""With fewer input channels, cutting the rows costs more than it saves."""
_WORDS = 16
_COLUMNS = 64
_SUMS = 16
"""Vectors of sums: with more, too much goes to memory and back."""


@dataclass(frozen=True)
class PackedRowsTile:
    """``panels`` vectors of columns share each activation that is loaded; a task is ``blocks`` blocks of columns."""

    panels: int
    blocks: int


@dataclass(frozen=True)
class PackedRowsGeometry:
    """The extents of one multiplication.

    ``rows`` × ``in_channels`` activations, ``out_channels`` columns, and a factor for each ``group`` elements of the
    reduction (0: none).
    """

    rows: int
    in_channels: int
    out_channels: int
    group: int
    instruction: str

    @property
    def dot(self) -> DotInstruction:
        """The row of the table."""
        return INSTRUCTIONS[self.instruction]

    @property
    def row(self) -> Intrinsic:
        """How the weights lie: as if one instruction multiplied a whole block of columns."""
        return replace(
            INTEGER[self.instruction],
            name=f"{self.dot.family}{32 * self.dot.lanes}",
            activation="uint8",
            weight="uint8",
            lanes=self.columns,
            group=self.step,
            family=self.dot.family,
            words=self.words,
            nibbles=True,
            multiplied=bool(self.group),
        )

    @property
    def panels(self) -> int:
        """Vectors of columns in a block."""
        return min(_COLUMNS // self.dot.lanes, -(-self.out_channels // self.dot.lanes))

    @property
    def columns(self) -> int:
        """Columns of a block."""
        return self.panels * self.dot.lanes

    @property
    def blocks(self) -> int:
        """Blocks that hold all columns."""
        return -(-self.out_channels // self.columns)

    @property
    def words(self) -> int:
        """Words of four elements in a step, all of which have one factor."""
        return _WORDS if self.group % (4 * _WORDS) == 0 else _WORDS // 2

    @property
    def step(self) -> int:
        """Elements of the reduction in a step."""
        return 4 * self.words

    @property
    def steps(self) -> int:
        """Steps along the reduction, the last one padded."""
        return -(-self.in_channels // self.step)


def default_packed_rows_tile(geometry: PackedRowsGeometry, threads: int = 2) -> PackedRowsTile:
    """As many panels as registers hold, and several tasks a thread so that none waits long."""
    wanted = max(1, geometry.blocks // (4 * threads))
    sizes = [d for d in divisors(geometry.blocks) if d <= wanted]
    return PackedRowsTile(max(_panels(geometry)), balanced(sizes, geometry.blocks, threads))


def packed_rows_tiles(geometry: PackedRowsGeometry) -> list[PackedRowsTile]:
    """Every tile worth trying: its sums fit the registers, its tasks two threads."""
    return shared_evenly(_tiles(geometry))


def _tiles(geometry: PackedRowsGeometry) -> Iterator[tuple[int, PackedRowsTile]]:
    """Each tile with the number of its tasks."""
    for panels in _panels(geometry):
        for blocks in divisors(geometry.blocks):
            yield geometry.blocks // blocks, PackedRowsTile(panels, blocks)


def _panels(geometry: PackedRowsGeometry) -> list[int]:
    return [p for p in divisors(geometry.panels) if p == 1 or p * geometry.rows <= _SUMS]
