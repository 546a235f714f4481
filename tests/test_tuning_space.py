"""The spaces of tiles: every tile that a spec lists compiles, and computes what the default computes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run
from reference import quantized_convolution
from test_weight_only import random_weights, spec_of

from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.depthwise import DepthwiseTile
from tvm_mpq.kernels.pair_depthwise_tile import PairDepthwiseTile
from tvm_mpq.kernels.spec import KernelSpec, Tile
from tvm_mpq.kernels.tiles import ConvolutionTile
from tvm_mpq.kernels.winograd import WinogradGeometry, WinogradTile
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.packing import pack_channels, pack_depthwise, pack_weights
from tvm_mpq.quantization.winograd import pack_winograd
from tvm_mpq.transform.lower_weight_only import packed_constants
from tvm_mpq.tuning.features import features
from tvm_mpq.tuning.record import tile_from_json, tile_to_json

SAME = (1, 1, 1, 1)
SHAPES = {
    "1x1": ("conv2d", ConvolutionShape(1, 6, 6, 20, 24)),
    "3x3": ("conv2d", ConvolutionShape(1, 7, 6, 16, 24, (3, 3), (1, 1), SAME)),
    "strided": ("conv2d", ConvolutionShape(2, 9, 8, 3, 12, (3, 3), (2, 2), (0, 0, 1, 1))),
    "grouped": ("conv2d", ConvolutionShape(1, 5, 5, 8, 16, (3, 3), (1, 1), SAME, groups=2)),
    "matmul": ("matmul", ConvolutionShape(5, 1, 1, 32, 40)),
    "depthwise": ("depthwise", ConvolutionShape(1, 8, 8, 16, 16, (3, 3), (1, 1), SAME, groups=16)),
    "odd depthwise": ("depthwise", ConvolutionShape(2, 6, 6, 9, 18, (3, 3), (2, 2), SAME, groups=9)),
}
ZEROS = (7, 130)


@functools.cache
def space(name: str, in_dtype: str, instruction: str) -> tuple[KernelSpec, list[Tile]]:
    family, shape = SHAPES[name]
    spec = KernelSpec(family, shape, in_dtype, Output(in_dtype), instruction)
    return spec, spec.space()


@functools.cache
def data(name: str) -> tuple[np.ndarray, ...]:
    shape = SHAPES[name][1]
    rng = np.random.default_rng(3)
    q = rng.integers(0, 256, (shape.batch, shape.height, shape.width, shape.in_channels), np.uint8)
    codes = rng.integers(-127, 128, (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel))
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    multiplier = (rng.random(shape.out_channels) * 2e-3 + 1e-6).astype(np.float32)
    return q, codes.astype(np.int8), bias, multiplier


def integers(name: str, spec: KernelSpec, tile: Tile, instruction: str) -> np.ndarray:
    q, codes, bias, multiplier = data(name)
    chosen = spec.with_tile(tile)
    shape, row = spec.shape, chosen.row
    folded = fold_zero_point(bias, codes, ZEROS[0])
    if spec.family == "depthwise":
        constants = [pack_depthwise(codes), folded, multiplier]
    elif isinstance(tile, WinogradTile):
        g = WinogradGeometry(shape, row)
        each = [pack_channels(values, 1, g.block) for values in (bias, multiplier)]
        constants = [pack_winograd(codes, g.channels, g.block, row.group), *each]
    else:
        sums = folded if row.activation == "uint8" else bias
        each = [pack_channels(values, shape.groups, row.lanes) for values in (sums, multiplier)]
        constants = [pack_weights(codes, shape.groups, row.lanes, row.group, row.words), *each]
    x = q.reshape(-1, shape.in_channels)
    return run(chosen.schedule(tile), instruction, x, *constants, np.array(ZEROS, np.int32))


@pytest.mark.parametrize("instruction", ["avx2", "avx512vnni", "generic"])
@settings(max_examples=16, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(list(SHAPES)), at=st.floats(0, 0.999))
def test_every_tile_gives_the_bytes_of_the_reference(instruction: str, name: str, at: float) -> None:
    require(instruction)
    spec, tiles = space(name, "uint8", instruction)
    tile = tiles[int(at * len(tiles))]
    q, codes, bias, multiplier = data(name)
    expected = quantized_convolution(q, codes, bias, multiplier, ZEROS, spec.shape)
    np.testing.assert_array_equal(integers(name, spec, tile, instruction), expected, strict=True)


@settings(max_examples=16, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(list(SHAPES)), at=st.floats(0, 0.999))
def test_every_float_tile_gives_what_the_default_gives(name: str, at: float) -> None:
    require("avx2")
    spec, tiles = space(name, "float32", "avx2")
    outputs = []
    for tile in (tiles[0], tiles[int(at * len(tiles))]):
        q, codes, bias, _ = data(name)
        chosen = spec.with_tile(tile)
        shape, row = spec.shape, chosen.row
        weight, b = codes.astype(np.float32) / 127, bias.astype(np.float32) / 5000
        if spec.family == "depthwise":
            constants = [pack_depthwise(weight), b]
        elif isinstance(tile, WinogradTile):
            g = WinogradGeometry(shape, row)
            constants = [pack_winograd(weight, g.channels, g.block, row.group), pack_channels(b, 1, g.block)]
        else:
            constants = [
                pack_weights(weight, shape.groups, row.lanes, row.group),
                pack_channels(b, shape.groups, row.lanes),
            ]
        x = q.reshape(-1, shape.in_channels).astype(np.float32) / 255
        outputs.append(run(chosen.schedule(tile), "avx2", x, *constants))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.floats(0, 0.999))
def test_every_weight_only_tile_computes_the_same(at: float) -> None:
    require("avx2")
    w = random_weights(48, 96, 4, 32, 0)
    rng = np.random.default_rng(0)
    x, bias = rng.standard_normal((7, 96)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    spec = spec_of(7, w, "avx2")
    constants = packed_constants(w, bias, spec)
    tiles = spec.space()
    assert len(tiles) > 8
    found = run(spec.schedule(tiles[int(at * len(tiles))]), "avx2", x, *constants)
    np.testing.assert_allclose(found, run(spec.schedule(), "avx2", x, *constants), atol=1e-5, strict=True)
    assert np.isfinite(features(spec, tiles)[:, :4]).all()


@pytest.mark.parametrize("instruction", list(TARGETS))
@pytest.mark.parametrize("in_dtype", ["uint8", "float32"])
@pytest.mark.parametrize("name", list(SHAPES))
def test_a_space_begins_with_the_default_and_names_each_tile_once(
    name: str, in_dtype: str, instruction: str
) -> None:
    spec, tiles = space(name, in_dtype, instruction)
    assert tiles[0] == spec.faster().default_tile()
    assert len(tiles) == len(set(tiles)) >= 2
    kinds = {type(tile) for tile in tiles}
    if spec.family == "depthwise":
        assert kinds == {DepthwiseTile if spec.pair_lanes is None else PairDepthwiseTile}
    else:
        by_winograd = name == "3x3" and spec.by_winograd() is not None
        assert kinds == {ConvolutionTile} | ({WinogradTile} if by_winograd else set())
    assert all(tile_from_json(tile_to_json(tile)) == tile for tile in tiles)
    vectors = features(spec, tiles)
    assert np.isfinite(vectors[:, 0]).all()
    # The model tells tiles apart.
    assert len(np.unique(np.nan_to_num(vectors, nan=-9.0), axis=0)) == len(tiles)


def test_two_threads_get_about_equal_shares_of_every_tile_but_the_default() -> None:
    spec, tiles = space("1x1", "uint8", "avx2")
    blocks = -(-spec.shape.out_channels // spec.row.lanes)
    for tile in tiles[1:]:
        assert isinstance(tile, ConvolutionTile)
        row_tasks = -(-spec.shape.rows // tile.rows) // tile.row_tiles
        tasks = row_tasks * (blocks // tile.blocks // tile.column_tiles)
        assert 2 * -(-tasks // 2) <= 1.17 * tasks
