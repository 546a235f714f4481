"""Winograd's F(2×2, 3×3): geometry, blocking and the choice between it and the direct convolution.

A 3×3 convolution of stride 1 in tiles of 2×2 outputs, each from 4×4 inputs (Lavin & Gray, arXiv 1509.09308):

    V[p, t, c] = Bᵀ d B       over the 4×4 inputs d of tile t; p = 4·i + j
    U[p, c, k] = 2G g (2G)ᵀ   over the 3×3 weights g of channels c, k; twice the usual G keeps them integers
    M[p, t, k] = Σ_c V[p, t, c] · U[p, c, k]
    out        = Aᵀ M A / 4   2×2 outputs of tile t

16 multiplications make what takes 36 directly. In integers every step is exact: the inputs less
their zero-point are within ±255 and V within ±1020, codes are within ±127 and U within ±1143, both int16; |M|
and the four-fold result are at most 4·255·127·9·C, which int32 holds for C ≤ 1841. The result is the direct
convolution's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm_mpq.kernels import neon
from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.tiles import shared_evenly

_PARALLEL_LOOPS = 5000
"""What starting the program's parallel loops costs, in vector multiplications."""
MOST_INTEGER_CHANNELS = (2**31 - 1) // (4 * 255 * 127 * 9)
"""More input channels could overflow the int32 accumulators."""


@dataclass(frozen=True)
class WinogradTile:
    """The decisions of the program.

    A parallel task is a block of ``tiles`` tiles (a multiple of ``rows``) × ``columns`` column blocks (which
    divide all). ``rows`` × a column block of results stays in registers through the reduction, which is
    unrolled ``unroll`` steps. The transformed inputs and weights are made for the whole tensor before
    (``transform_whole``, ``expand_whole``) or by each task for itself, in its core's cache.
    """

    rows: int
    tiles: int
    columns: int
    unroll: int
    transform_whole: bool
    expand_whole: bool


@dataclass(frozen=True)
class WinogradGeometry:
    """The extents that follow from a shape and an instruction."""

    shape: ConvolutionShape
    intrinsic: Intrinsic

    @property
    def tile_rows(self) -> int:
        """Rows of tiles of one image."""
        return -(-self.shape.out_height // 2)

    @property
    def tile_columns(self) -> int:
        """Columns of tiles of one image."""
        return -(-self.shape.out_width // 2)

    @property
    def tiles(self) -> int:
        """Tiles of the whole batch."""
        return self.shape.batch * self.tile_rows * self.tile_columns

    @property
    def vector(self) -> int:
        """Elements of a vector of transformed inputs or weights."""
        return self.intrinsic.lanes * self.intrinsic.group

    @property
    def channels(self) -> int:
        """Input channels, padded to whole vectors."""
        return -(-self.shape.in_channels // self.vector) * self.vector

    @property
    def vectors(self) -> int:
        """Vectors of output channels in a column block."""
        return 1 if self.shape.out_channels <= self.intrinsic.lanes else 2

    @property
    def block(self) -> int:
        """Output channels of a column block."""
        return self.vectors * self.intrinsic.lanes

    @property
    def blocks(self) -> int:
        """Column blocks that hold all output channels."""
        return -(-self.shape.out_channels // self.block)

    @property
    def weight_shape(self) -> tuple[int, int, int, int, int]:
        """[blocks, 9, channels / G, block, G] of the packed weights; of 4-bit codes two steps share a byte."""
        group = self.intrinsic.group
        steps = self.channels // group
        return (self.blocks, 9, steps // 2 if self.intrinsic.nibbles else steps, self.block, group)


def winograd_fits(shape: ConvolutionShape, in_dtype: str) -> bool:
    """Whether the convolution is one that F(2×2, 3×3) can compute, exactly when it is of integers."""
    return (
        shape.kernel == (3, 3)
        and shape.stride == (1, 1)
        and shape.dilation == (1, 1)
        and shape.groups == 1
        and (in_dtype != "uint8" or shape.in_channels <= MOST_INTEGER_CHANNELS)
    )


def default_winograd_tile(geometry: WinogradGeometry) -> WinogradTile:
    """The tile for a shape: blocks of tiles for large images, column blocks of the whole for small ones."""
    size = 2 if geometry.intrinsic.activation == "int16" else 4
    weight_bytes = 16 * geometry.channels * geometry.blocks * geometry.block * size
    # A task streams its transformed weights from the cache: where they are large, each reads its own part.
    by_columns = geometry.tiles <= 64 or (weight_bytes > 2**21 and geometry.tiles <= 256)
    if by_columns:
        rows = min((4, 5), key=lambda rows: _round_up(geometry.tiles, rows))
        return WinogradTile(rows, _round_up(geometry.tiles, rows), 1, 4, True, False)
    tile_bytes = 16 * geometry.channels * size
    most = max(4, min(32, 2**18 // tile_bytes))
    _, rows, count = min(
        (_round_up(geometry.tiles, count), rows, -count)
        for rows in (4, 5)
        for count in range(rows, most + 1, rows)
    )
    return WinogradTile(rows, -count, geometry.blocks, 4, False, True)


def winograd_tiles(geometry: WinogradGeometry) -> list[WinogradTile]:
    """Every tile of the program worth trying: its results fit the registers, its tasks two threads."""
    return shared_evenly(_winograd_tiles(geometry))


def _winograd_tiles(geometry: WinogradGeometry) -> Iterator[tuple[int, WinogradTile]]:
    """Each tile with the number of its tasks."""
    row, total = geometry.intrinsic, geometry.tiles
    most = (row.registers - geometry.vectors - 1 - (row.family == "pmaddwd")) // geometry.vectors
    steps = geometry.channels // row.group
    for rows in range(max(1, most // 3), most + 1):
        counts = {rows * n for n in (1, 2, 3, 4, 6, 8, 12, 16) if rows * n <= total} | {
            _round_up(total, rows),
            _round_up(-(-total // 2), rows),
        }
        for count in sorted(counts):
            for columns in (d for d in range(1, geometry.blocks + 1) if geometry.blocks % d == 0):
                tasks = -(-total // count) * (geometry.blocks // columns)
                for unroll in (u for u in (1, 2, 4, 8) if steps % u == 0):
                    for transform_whole in (False, True):
                        for expand_whole in (False, True):
                            tile = WinogradTile(rows, count, columns, unroll, transform_whole, expand_whole)
                            yield tasks, tile


def winograd_pays(geometry: WinogradGeometry, direct_row: Intrinsic) -> bool:
    """Whether it is modelled at least a quarter faster than the direct kernel, in vector multiplications.

    The other costs (two multiplications take a cycle) are fitted to measurements on Zen 3. ``direct_row``: what the
    direct kernel multiplies by; words that are added before they are widened leave fewer other instructions, codes that
    have to be unpacked more.
    """
    shape, lanes = geometry.shape, geometry.intrinsic.lanes
    outputs = geometry.blocks * geometry.block
    tiles = _round_up(geometry.tiles, default_winograd_tile(geometry).tiles)
    weight_vectors = geometry.channels * outputs / geometry.vector
    multiplications = 16 * tiles * weight_vectors
    transforms = 48 * tiles * geometry.channels / geometry.vector + 60 * tiles * outputs / lanes
    # One column block's transformed weights stay in half a megabyte of second-level cache, or they do not.
    spills = (
        16 * geometry.channels * geometry.block * (2 if geometry.intrinsic.activation == "int16" else 4)
        > 300_000
    )
    expansion = (100 if spills else 64) * weight_vectors
    steps = shape.reduction(geometry.intrinsic.group)
    direct = shape.rows * steps * _round_up(shape.out_channels, lanes) / geometry.vector
    if direct_row.nibbles:
        direct *= 0.68
    elif direct_row.family == "pmaddubsw":
        direct *= 0.4 * (1 + 1 / direct_row.words)
    elif direct_row.family == neon.HALF:
        direct *= 0.5 * (1 + neon.HALF_WIDENING / direct_row.words)
    return direct >= 1.25 * (multiplications + transforms + expansion + _PARALLEL_LOOPS)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
