"""The tile that a GPU's convolution or matrix multiplication has where none was tuned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tvm_mpq.kernels.convolution import ConvolutionShape, packed_weight_shape
from tvm_mpq.kernels.cuda.int4_product import CHUNKS, padded
from tvm_mpq.kernels.cuda.squares import square_tile
from tvm_mpq.kernels.cuda.tensor_core import tensor_held
from tvm_mpq.kernels.cuda.tile import FRAGMENT, STEP, TENSOR_CORE, CudaTile, spread_tile
from tvm_mpq.kernels.intrinsic import Intrinsic

if TYPE_CHECKING:
    from tvm_mpq.kernels.spec import KernelSpec

_MOST_DEPTH = {"int8": 8, "float16": 4}
_MOST_HELD = 40
"""Registers for what is loaded ahead that leave enough for sums and addresses."""


def default_cuda_tile(shape: ConvolutionShape, row: Intrinsic) -> CudaTile:
    """The largest tile of 128 to 16 rows and columns that still makes enough blocks, and wastes little of the edges."""
    _, blocks, steps = packed_weight_shape(shape, row)[:3]
    matrices = row.family in TENSOR_CORE
    most = _MOST_DEPTH[row.activation] if matrices else 1
    depth = max(d for d in range(1, most + 1) if steps % d == 0)
    tile = _spread(shape, blocks * FRAGMENT, depth, FRAGMENT if matrices else 2 * FRAGMENT)
    if matrices:
        # Unpacking to bytes takes registers too: of some kernels that did both the assembler kept two in memory.
        unpacks = row.nibbles and row.activation == "int8"
        return replace(tile, ahead=not unpacks and 0 < tensor_held(shape, row, tile) <= _MOST_HELD)
    return replace(square_tile(tile), ahead=steps > STEP)


def int4_pays(spec: KernelSpec) -> bool:
    """Whether ``spec``'s kernel on int4 tensor cores takes fewer instructions than one that unpacks codes for int8.

    It takes 0.4 to 0.66 times as many for each product (docs/cuda.md), and pads the reduction to a multiple of 64
    instead of 16.
    """
    steps = packed_weight_shape(spec.shape, spec.row)[2]
    return padded(steps) <= 1.5 * steps


def default_int4_tile(shape: ConvolutionShape, row: Intrinsic) -> CudaTile:
    """The same on int4 tensor cores, with the depth that pads the reduction least, the larger of equal ones."""
    _, blocks, steps = packed_weight_shape(shape, row)[:3]
    depth = min((2 * CHUNKS, CHUNKS), key=lambda d: padded(steps, d))
    tile = replace(_spread(shape, blocks * FRAGMENT, depth, FRAGMENT), int4=True)
    return replace(tile, ahead=0 < tensor_held(shape, row, tile) <= _MOST_HELD)


def _spread(shape: ConvolutionShape, width: int, depth: int, narrowest: int) -> CudaTile:
    """The tile for results ``width`` columns wide, itself at least ``narrowest``, by the blocks that it makes."""
    return spread_tile(
        *(shape.rows, max(width, narrowest), depth),
        lambda rows, columns: shape.groups * -(-shape.rows // rows) * -(-width // columns),
    )
