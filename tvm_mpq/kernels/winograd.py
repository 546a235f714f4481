"""Winograd's F(2×2, 3×3) and F(2×4, 3×3): geometry, blocking and the choice between them and the direct convolution.

A 3×3 convolution of stride 1 in tiles of 2 × a outputs (a = 2 or 4, ``across``), each from 4 × (a + 2) inputs (Lavin &
Gray, arXiv 1509.09308), is rewritten as

    V[p, t, c] = B₂ᵀ d Bₐ            over the inputs d of tile t; p = (a + 2)·i + j
    U[p, c, k] = (f₂G₂) g (fₐGₐ)ᵀ    over the 3×3 weights g of channels c, k; factors f₂ = 2, f₄ = 24 keep them integers
    M[p, t, k] = Σ_c V[p, t, c] · U[p, c, k]
    out        = A₂ᵀ M Aₐ / (f₂fₐ)   2 × a outputs of tile t

with F(2, 3) down the rows, B₂ᵀ = [1 0 −1 0; 0 1 1 0; 0 −1 1 0; 0 1 0 −1], 2G₂ = [2 0 0; 1 1 1; 1 −1 1; 0 0 2],
A₂ᵀ = [1 1 1 0; 0 1 −1 −1], and along the columns the same or F(4, 3) of the points 0, ±1, ±2, ∞ (theirs, but for
the signs of the second and third row of Bᵀ and G):

    B₄ᵀ = [4 0 −5 0 1 0; 0 4 4 −1 −1 0; 0 −4 4 1 −1 0; 0 −2 −1 2 1 0; 0 2 −1 −2 1 0; 0 4 0 −5 0 1]
    24G₄ = [6 0 0; 4 4 4; 4 −4 4; 1 2 4; 1 −2 4; 0 0 24]
    A₄ᵀ = [1 1 1 1 1 0; 0 1 −1 2 −2 0; 0 1 1 4 4 0; 0 1 −1 8 −8 1]

16 multiplications make what takes 36 directly, or 24 what takes 72. In integers every step is exact. The inputs less
their zero-point are within ±255, so V is within ±1020 for 2×2 and ±5100 for 2×4; codes are within ±127, and U within
±1143 and ±9144: all int16, and the sum of two products fits int32. Longer sums wrap, so that A₂ᵀ M Aₐ is 4 or 48 times
the convolution y modulo 2³². Where |4y| < 2³¹, which C ≤ 1841 guarantees (|y| ≤ 255·127·9·C), a shift by 2 gives y.
48y times the inverse of 3 is 16y modulo 2³², and where |16y| < 2³¹ (C ≤ 460) a shift by 4 gives y. The result is the
direct convolution's, bit for bit. Floats keep to 2×2: F(4, 3) rounds worse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tvm_mpq.kernels import neon
from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.divisors import divisors
from tvm_mpq.kernels.intrinsic import Intrinsic
from tvm_mpq.kernels.tiles import shared_evenly

THIRD = 0xAAAAAAAB
"""The inverse of 3 modulo 2^32."""
SHIFT = {2: 2, 4: 4}
"""The twos in the factor that results have, 4 or 48, by the columns of a tile."""
MOST_INTEGER_CHANNELS = {across: (2**31 - 1) // (2**shift * 255 * 127 * 9) for across, shift in SHIFT.items()}
"""More input channels could overflow int32."""
_PARALLEL_LOOPS = 5000
"""What starting the program's parallel loops costs, in vector multiplications."""
_TRANSFORMS = {2: (48, 60, 64), 4: (105, 121, 64)}
"""What a tile's vector of inputs, one of outputs and a vector of weights cost to transform, likewise."""


@dataclass(frozen=True)
class WinogradTile:
    """The decisions of the program.

    A parallel task is a block of ``tiles`` tiles (a multiple of ``rows``) × ``columns`` column blocks (which
    divide all). ``rows`` × a column block of results stays in registers through the reduction, which is
    unrolled ``unroll`` steps. The transformed inputs and weights are made for the whole tensor before
    (``transform_whole``, ``expand_whole``) or by each task for itself, in its core's cache. A tile has two rows of
    ``across`` outputs, 2 or 4.
    """

    rows: int
    tiles: int
    columns: int
    unroll: int
    transform_whole: bool
    expand_whole: bool
    across: int = 2


@dataclass(frozen=True)
class WinogradGeometry:
    """The extents that follow from a shape, an instruction and the outputs ``across`` a tile.

    Those of the packed weights are the same for all tiles.
    """

    shape: ConvolutionShape
    intrinsic: Intrinsic
    across: int = 2

    @property
    def points(self) -> int:
        """Multiplications that make a tile."""
        return 4 * (self.across + 2)

    @property
    def tile_rows(self) -> int:
        """Rows of tiles of one image."""
        return -(-self.shape.out_height // 2)

    @property
    def tile_columns(self) -> int:
        """Columns of tiles of one image."""
        return -(-self.shape.out_width // self.across)

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
    """Whether the convolution is one that tiles of some size can compute, exactly when it is of integers."""
    return (
        shape.kernel == (3, 3)
        and shape.stride == (1, 1)
        and shape.dilation == (1, 1)
        and shape.groups == 1
        and (in_dtype != "uint8" or shape.in_channels <= MOST_INTEGER_CHANNELS[2])
    )


def winograd_geometries(shape: ConvolutionShape, intrinsic: Intrinsic) -> list[WinogradGeometry]:
    """One for each size of tile that computes the convolution, exactly when it is of integers."""
    integer = intrinsic.activation == "int16"
    return [
        WinogradGeometry(shape, intrinsic, across)
        for across, most in MOST_INTEGER_CHANNELS.items()
        if (shape.in_channels <= most if integer else across == 2)
    ]


def winograd_geometry(shape: ConvolutionShape, intrinsic: Intrinsic) -> WinogradGeometry:
    """The one that is modelled as fastest."""
    return min(winograd_geometries(shape, intrinsic), key=winograd_cost)


def default_winograd_tile(geometry: WinogradGeometry) -> WinogradTile:
    """The tile for a shape: blocks of tiles for large images, column blocks of the whole for small ones."""
    size = 2 if geometry.intrinsic.activation == "int16" else 4
    weight_bytes = geometry.points * geometry.channels * geometry.blocks * geometry.block * size
    columns = geometry.tiles * geometry.across
    # A task streams its transformed weights from the cache: where they are large, each reads its own part.
    by_columns = columns <= 128 or (weight_bytes > 2**21 and columns <= 512)
    if by_columns:
        rows = min((4, 5), key=lambda rows: _round_up(geometry.tiles, rows))
        return WinogradTile(
            rows, _round_up(geometry.tiles, rows), 1, _unroll(geometry, rows), True, False, geometry.across
        )
    tile_bytes = geometry.points * geometry.channels * size
    most = max(4, min(32, 2**18 // tile_bytes))
    _, count, rows = min(
        (_round_up(geometry.tiles, count), -count, rows)
        for rows in (4, 5)
        for count in range(rows, most + 1, rows)
    )
    unroll = _unroll(geometry, rows)
    return WinogradTile(rows, -count, geometry.blocks, unroll, False, True, geometry.across)


def _unroll(geometry: WinogradGeometry, rows: int) -> int:
    """Steps a turn of the loop: of four LLVM adds up integer products first, for which five rows leave no registers."""
    return 2 if rows == 5 and geometry.intrinsic.family == "pmaddwd" else 4


def winograd_tiles(shape: ConvolutionShape, intrinsic: Intrinsic) -> list[WinogradTile]:
    """Every tile of the program worth trying: its results fit the registers, its tasks two threads.

    The default of each size of tile comes along.
    """
    tiles = []
    for geometry in winograd_geometries(shape, intrinsic):
        tiles += [default_winograd_tile(geometry), *shared_evenly(_winograd_tiles(geometry))]
    return tiles


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
            for columns in divisors(geometry.blocks):
                tasks = -(-total // count) * (geometry.blocks // columns)
                for unroll in (u for u in (1, 2, 4, 8) if steps % u == 0):
                    for transform_whole in (False, True):
                        for expand_whole in (False, True):
                            whole = (transform_whole, expand_whole)
                            yield tasks, WinogradTile(rows, count, columns, unroll, *whole, geometry.across)


def winograd_cost(geometry: WinogradGeometry) -> float:
    """The default tile's cost in vector multiplications, of which two take a cycle; fitted to measurements on Zen 3."""
    lanes = geometry.intrinsic.lanes
    outputs = geometry.blocks * geometry.block
    tiles = _round_up(geometry.tiles, default_winograd_tile(geometry).tiles)
    weight_vectors = geometry.channels * outputs / geometry.vector
    input_cost, output_cost, weight_cost = _TRANSFORMS[geometry.across]
    multiplications = geometry.points * tiles * weight_vectors
    transforms = tiles * (input_cost * geometry.channels / geometry.vector + output_cost * outputs / lanes)
    # One column block's transformed weights stay in half a megabyte of second-level cache, or they do not.
    size = 2 if geometry.intrinsic.activation == "int16" else 4
    spills = geometry.points * geometry.channels * geometry.block * size > 360_000
    expansion = weight_cost * (1.5 if spills else 1.0) * weight_vectors
    return multiplications + transforms + expansion + _PARALLEL_LOOPS


def winograd_pays(geometry: WinogradGeometry, direct_row: Intrinsic) -> bool:
    """Whether it is modelled at least a quarter faster than the direct kernel.

    ``direct_row``: what the direct kernel multiplies by; words that are added before they are widened leave fewer other
    instructions, codes that have to be unpacked more.
    """
    shape, lanes = geometry.shape, geometry.intrinsic.lanes
    steps = shape.reduction(geometry.intrinsic.group)
    direct = shape.rows * steps * _round_up(shape.out_channels, lanes) / geometry.vector
    if direct_row.nibbles:
        direct *= 0.68
    elif direct_row.family == "pmaddubsw":
        direct *= 0.4 * (1 + 1 / direct_row.words)
    elif direct_row.family == neon.HALF:
        direct *= 0.5 * (1 + neon.HALF_WIDENING / direct_row.words)
    return direct >= 1.25 * winograd_cost(geometry)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
