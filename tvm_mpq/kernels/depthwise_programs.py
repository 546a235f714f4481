"""Which program a depthwise convolution gets: ARM's dot products, x86's products of pairs, or one tap at a time."""

from __future__ import annotations

from dataclasses import dataclass

from tvm.tirx import PrimFunc

from tvm_mpq.kernels import neon_depthwise
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.depthwise import (
    DepthwiseTile,
    default_depthwise_tile,
    depthwise,
    depthwise_tiles,
    schedule_depthwise,
)
from tvm_mpq.kernels.intrinsic import FLOAT, INTEGER, NEON
from tvm_mpq.kernels.neon_dot_depthwise import (
    default_dot_tile,
    dot_depthwise,
    dot_depthwise_fits,
    dot_tiles,
)
from tvm_mpq.kernels.pair_depthwise import pair_depthwise
from tvm_mpq.kernels.pair_depthwise_tile import (
    PairDepthwiseTile,
    default_pair_tile,
    pair_lanes,
    pair_tiles,
)


@dataclass(frozen=True)
class DepthwiseKernel:
    """What the choice depends on; ``float_weight``: how weights of floats are read (see ``narrow_weights``)."""

    shape: ConvolutionShape
    in_dtype: str
    out: Output
    instruction: str
    float_weight: str

    @property
    def pair_lanes(self) -> int | None:
        """The results of a vector by x86's products of pairs; None where another program is used."""
        row = INTEGER[self.instruction]
        if self.in_dtype != "uint8" or row.family not in ("pmaddwd", "vpdpbusd"):
            return None
        return pair_lanes(self.shape, row.lanes)

    @property
    def _dots(self) -> str | None:
        """The family of ARM's dot product, or None where another program is used."""
        family = INTEGER[self.instruction].family
        fits = family in ("sdot", "usdot") and dot_depthwise_fits(self.shape, self.in_dtype)
        return family if fits else None

    def default_tile(self) -> DepthwiseTile | PairDepthwiseTile:
        """The tile that is used where none was tuned."""
        if self._dots is not None:
            return default_dot_tile(self.shape)
        if self.pair_lanes is not None:
            return default_pair_tile(self.shape, self.pair_lanes, INTEGER[self.instruction].registers)
        lanes = FLOAT[self.instruction].lanes
        # Bytes on NEON are widened from eight at a time.
        lanes = 2 * lanes if self.in_dtype == "uint8" and self.instruction in NEON else lanes
        return default_depthwise_tile(self.shape, lanes, self.in_dtype)

    def tiles(self) -> list[DepthwiseTile] | list[PairDepthwiseTile]:
        """Every tile worth trying."""
        if self._dots is not None:
            return dot_tiles(self.shape)
        if self.pair_lanes is not None:
            return pair_tiles(self.shape, self.pair_lanes, INTEGER[self.instruction].registers)
        return depthwise_tiles(self.shape, FLOAT[self.instruction], self.in_dtype)

    def define(self) -> PrimFunc:
        """The unscheduled kernel, one tap at a time, which is what all of them compute."""
        neon = self.instruction in NEON
        return depthwise(self.shape, self.in_dtype, self.out, self.float_weight, neon)

    def schedule(self, tile: DepthwiseTile | PairDepthwiseTile) -> PrimFunc:
        """The kernel with ``tile``."""
        if isinstance(tile, PairDepthwiseTile):
            assert self.pair_lanes is not None
            return pair_depthwise(self.shape, self.out, self.pair_lanes, tile)
        if self._dots is not None:
            return dot_depthwise(self.shape, self.out, self._dots, tile)
        simple = self.shape.in_channels == self.shape.out_channels and self.in_dtype == "uint8"
        tap = neon_depthwise.tap(tile.vector) if simple and self.instruction in NEON else None
        return schedule_depthwise(self.define(), self.shape, tile, tap)
