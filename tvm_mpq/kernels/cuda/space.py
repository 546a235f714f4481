"""Every tile of a GPU's programs worth trying: what a block stages fits its shared memory, and each warp has a part."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from tvm_mpq.kernels.convolution import packed_weight_shape
from tvm_mpq.kernels.cuda.int4_product import CHUNKS
from tvm_mpq.kernels.cuda.kernel import cuda_tile, cuda_unit
from tvm_mpq.kernels.cuda.scalar_core import scalar_shared
from tvm_mpq.kernels.cuda.tensor_core import tensor_held, tensor_shared
from tvm_mpq.kernels.cuda.tile import FRAGMENT, PART, STEP, WARP, CudaTile

if TYPE_CHECKING:
    from tvm_mpq.kernels.spec import KernelSpec

STATIC_SHARED = 48 << 10
"""Bytes of shared memory that a block may have without asking for more when it is launched."""
_EXTENTS = (16, 32, 64, 128)
_WARPS = (1, 2, 4)
_MOST_WARPS = 8
_MOST_FRAGMENTS = 16
"""Sums of more fragments than these leave a thread no registers for anything else."""
_MOST_DEPTH = 8
_MOST_HELD = 64


def cuda_space(spec: KernelSpec) -> list[CudaTile]:
    """The default tile of ``spec`` first; programs whose tile follows from the shape have that one only.

    Where int4 tensor cores can make the same kernel, tiles of both.
    """
    default, by_int4 = cuda_tile(spec.faster()), spec.by_int4()
    if spec.family == "depthwise" or cuda_unit(spec) == "dp4a":
        return [default]
    tiles = [*(_matrix_tiles(spec) if cuda_unit(spec) == "tensor core" else _scalar_tiles(spec))]
    if by_int4 is not None:
        tiles += _matrix_tiles(by_int4)
    return list(dict.fromkeys([default, *tiles]))


def _matrix_tiles(spec: KernelSpec) -> Iterator[CudaTile]:
    int4, steps = spec.row.family == "imma4", packed_weight_shape(spec.shape, spec.row)[2]
    depths = [d for d in range(1, _MOST_DEPTH + 1) if steps % d == 0]
    if int4:
        depths = [d for d in range(CHUNKS, 2 * _MOST_DEPTH + 1, CHUNKS) if d < steps + CHUNKS]
    for (rows, columns), depth, down, across in itertools.product(_extents(spec), depths, _WARPS, _WARPS):
        tile = CudaTile(rows, columns, depth, down, across, int4=int4)
        even = rows % (FRAGMENT * down) == 0 and columns % (FRAGMENT * across) == 0
        if not even or down * across > _MOST_WARPS:
            continue
        if (
            tile.fragments[0] * tile.fragments[1] > _MOST_FRAGMENTS
            or tensor_shared(spec.row, tile) > STATIC_SHARED
        ):
            continue
        yield tile
        if 0 < tensor_held(spec.shape, spec.row, tile) <= _MOST_HELD:
            yield replace(tile, ahead=True)


def _scalar_tiles(spec: KernelSpec) -> Iterator[CudaTile]:
    for rows, columns in _extents(spec):
        warps, rest = divmod(rows * columns, PART * PART * WARP)
        tile = CudaTile(rows, columns, 1, warps, 1)
        several = packed_weight_shape(spec.shape, spec.row)[2] > STEP
        if rest == 0 and 1 <= warps <= 2 * _MOST_WARPS and scalar_shared(tile) <= STATIC_SHARED:
            yield from (replace(tile, ahead=ahead) for ahead in (False, True)[: 1 + several])


def _extents(spec: KernelSpec) -> list[tuple[int, int]]:
    """Rows and columns of a block, not twice as many as there are."""
    width = packed_weight_shape(spec.shape, spec.row)[1] * FRAGMENT
    return [
        (rows, columns)
        for rows, columns in itertools.product(_EXTENTS, _EXTENTS)
        if (rows < 2 * spec.shape.rows or rows == _EXTENTS[0])
        and (columns < 2 * width or columns == _EXTENTS[0])
    ]
