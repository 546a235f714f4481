"""What the cost model sees of a tile: its decisions, and the quantities that they decide together with the shape."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tvm_mpq.kernels.amx import AmxTile
from tvm_mpq.kernels.convolution import packed_weight_shape
from tvm_mpq.kernels.cuda.scalar_core import scalar_shared
from tvm_mpq.kernels.cuda.tensor_core import tensor_shared
from tvm_mpq.kernels.cuda.tile import FRAGMENT, TENSOR_CORE, CudaTile
from tvm_mpq.kernels.depthwise import DepthwiseTile, channel_bytes
from tvm_mpq.kernels.intrinsic import FLOAT
from tvm_mpq.kernels.packed_rows import PackedRowsTile
from tvm_mpq.kernels.pair_depthwise_tile import PairDepthwiseTile, staged_pairs, task_input
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.kernels.tiles import BYTES, ConvolutionTile
from tvm_mpq.kernels.weight_only import WeightOnlyTile
from tvm_mpq.kernels.winograd import WinogradGeometry, WinogradTile

_KINDS = (
    *(ConvolutionTile, DepthwiseTile, PairDepthwiseTile, WinogradTile, WeightOnlyTile, PackedRowsTile),
    *(CudaTile, AmxTile),
)
_SIZE = 32


def features(spec: KernelSpec, tiles: list[Tile]) -> npt.NDArray[np.float32]:
    """float32 [tiles, features] of tiles of one key; NaN is what a template does not have."""
    shape = spec.shape
    common = [
        float(spec.in_dtype == "float32"),
        float(spec.out.dtype == "float32"),
        _log(shape.rows),
        _log(shape.in_channels // shape.groups),
        _log(shape.out_channels // shape.groups),
        float(shape.kernel[0] * shape.kernel[1]),
        float(shape.stride[1]),
        float(spec.weight_bits),
        float(BYTES[spec.weight_dtype]),
        float(spec.int16_words),
    ]
    values = np.full((len(tiles), len(_KINDS) + len(common) + _SIZE), np.nan, np.float32)
    for row, tile in zip(values, tiles, strict=True):
        kinds = [float(isinstance(tile, kind)) for kind in _KINDS]
        if isinstance(tile, ConvolutionTile):
            own = _convolution(spec, tile)
        elif isinstance(tile, DepthwiseTile):
            own = _depthwise(spec, tile)
        elif isinstance(tile, PairDepthwiseTile):
            own = _pair_depthwise(spec, tile)
        elif isinstance(tile, WeightOnlyTile):
            own = _weight_only(spec, tile)
        elif isinstance(tile, PackedRowsTile):
            own = _packed_rows(spec, tile)
        elif isinstance(tile, WinogradTile):
            own = _winograd(spec, tile)
        elif isinstance(tile, AmxTile):
            own = _amx(spec, tile)
        else:
            own = _cuda(spec, tile)
        numbers = [*kinds, *common, *own]
        row[: len(numbers)] = numbers
    return values


def _convolution(spec: KernelSpec, tile: ConvolutionTile) -> list[float]:
    shape, row = spec.shape, spec.row
    blocks, steps = packed_weight_shape(shape, row)[1:3]
    tiles, columns = -(-shape.rows // tile.rows), blocks // tile.blocks
    patch = tile.rows * shape.reduction(row.group) * BYTES[row.activation]
    panel = tile.blocks * row.lanes * steps * row.group * BYTES[row.weight]
    tasks = shape.groups * (tiles // tile.row_tiles) * (columns // tile.column_tiles)
    return [
        tile.rows,
        tile.blocks,
        tile.rows * tile.blocks,
        (tile.rows + tile.blocks) / (tile.rows * tile.blocks),
        _log(tile.row_tiles),
        _log(tile.column_tiles),
        tile.unroll,
        tile.rows * tile.blocks * tile.unroll,
        float(tile.staged),
        float(tile.stage_whole),
        tiles * tile.rows / shape.rows,
        _log(patch),
        _log(patch * tile.row_tiles),
        _log(panel),
        _log(panel * tile.column_tiles),
        _log(tasks),
        _log(steps / tile.unroll),
        float(tile.blocks & (tile.blocks - 1) == 0),
    ]


def _depthwise(spec: KernelSpec, tile: DepthwiseTile) -> list[float]:
    shape = spec.shape
    lanes = FLOAT[spec.instruction].lanes
    staged = channel_bytes(shape, tile.rows, spec.in_dtype)
    tasks = shape.batch * (shape.out_height // tile.rows) * (shape.out_channels // tile.channels)
    overlap = ((tile.rows - 1) * shape.stride[0] + shape.kernel[0]) / (tile.rows * shape.stride[0])
    return [
        tile.columns,
        tile.vector,
        tile.columns * tile.vector / lanes,
        tile.vector / lanes,
        _log(tile.rows),
        _log(tile.channels),
        _log(tile.channels // tile.vector),
        _log(staged * tile.channels),
        _log(staged * tile.vector),
        overlap,
        _log(tasks),
        float(shape.out_width // tile.columns),
        float(tile.columns * shape.kernel[0] * shape.kernel[1]),
    ]


def _pair_depthwise(spec: KernelSpec, tile: PairDepthwiseTile) -> list[float]:
    shape, lanes = spec.shape, spec.pair_lanes
    assert lanes is not None
    groups = -(-shape.out_channels // (2 * lanes)) // tile.blocks
    tasks = shape.batch * (shape.out_height // tile.rows) * groups
    return [
        tile.columns,
        lanes,
        _log(tile.rows),
        _log(tile.blocks),
        _log(tasks),
        _log(task_input(shape, tile.rows)),
        staged_pairs(shape, tile.rows) / tile.rows,
        float(shape.out_width // tile.columns),
        float(shape.out_width % tile.columns),
        float(tile.columns * shape.kernel[0] * shape.kernel[1]),
    ]


def _winograd(spec: KernelSpec, tile: WinogradTile) -> list[float]:
    geometry = WinogradGeometry(spec.shape, spec.with_tile(tile).row, tile.across)
    size = BYTES[geometry.intrinsic.activation]
    blocks = -(-geometry.tiles // tile.tiles)
    inputs = geometry.points * tile.tiles * geometry.channels * size
    weights = geometry.points * geometry.channels * geometry.block * size
    return [
        tile.rows,
        tile.rows * geometry.vectors,
        _log(tile.tiles),
        _log(tile.columns),
        tile.unroll,
        float(tile.transform_whole),
        float(tile.expand_whole),
        blocks * tile.tiles / geometry.tiles,
        _log(inputs),
        _log(weights),
        _log(weights * tile.columns),
        _log(geometry.points * tile.tiles * geometry.block * 4),
        _log(blocks * (geometry.blocks // tile.columns)),
        _log(blocks),
        tile.across,
    ]


def _weight_only(spec: KernelSpec, tile: WeightOnlyTile) -> list[float]:
    geometry = spec.weight_only
    tiles = -(-geometry.rows // tile.rows)
    tasks = -(-tiles // tile.row_tiles) * (geometry.blocks // tile.column_blocks)
    return [
        tile.rows,
        _log(tile.row_tiles),
        _log(tile.column_blocks),
        tiles * tile.rows / geometry.rows,
        _log(tasks),
        _log(geometry.steps * tile.rows * tile.row_tiles),
        _log(geometry.steps * tile.column_blocks),
        float(tile.panel),
    ]


def _packed_rows(spec: KernelSpec, tile: PackedRowsTile) -> list[float]:
    geometry = spec.packed_rows
    return [
        tile.panels,
        geometry.rows * tile.panels,
        _log(tile.blocks),
        _log(geometry.blocks // tile.blocks),
        _log(geometry.steps),
    ]


def _amx(spec: KernelSpec, tile: AmxTile) -> list[float]:
    geometry = spec.amx_geometry
    rows, columns = -(-geometry.row_tiles // tile.rows), -(-geometry.blocks // tile.columns)
    tasks = -(-rows // tile.row_groups) * (columns // tile.column_groups)
    return [
        tile.rows,
        tile.columns,
        tile.rows * tile.columns,
        (tile.rows + tile.columns) / (tile.rows * tile.columns),
        _log(tile.row_groups),
        _log(tile.column_groups),
        _log(tasks),
        rows * tile.rows / geometry.row_tiles,
        columns * tile.columns / geometry.blocks,
        _log(geometry.step * geometry.steps * spec.shape.kernel[0]),
    ]


def _cuda(spec: KernelSpec, tile: CudaTile) -> list[float]:
    shape = spec.shape
    if spec.family == "depthwise":
        return []  # its program has one tile
    row = spec.with_tile(tile).row
    blocks, steps = packed_weight_shape(shape, row)[1:3]
    rows, columns = -(-shape.rows // tile.rows), -(-blocks * FRAGMENT // tile.columns)
    fragments = tile.fragments[0] * tile.fragments[1]
    return [
        tile.rows,
        tile.columns,
        tile.depth,
        tile.warp_rows,
        tile.warp_columns,
        tile.threads,
        float(tile.ahead),
        float(tile.int4),
        fragments,
        (tile.fragments[0] + tile.fragments[1]) / max(1, fragments),
        (tile.rows + tile.columns) / (tile.rows * tile.columns),
        rows * tile.rows / shape.rows,
        columns * tile.columns / (blocks * FRAGMENT),
        _log(shape.groups * rows * columns),
        _log(shape.groups * rows * columns * tile.threads),
        _log(steps / tile.depth),
        _log(tensor_shared(row, tile) if row.family in TENSOR_CORE else scalar_shared(tile)),
    ]


def _log(value: float) -> float:
    return math.log2(max(value, 1e-9))
