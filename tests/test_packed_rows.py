"""Few rows by 4-bit codes: bit for bit NumPy's integers, whatever the tile, and chosen where rows are few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run
from reference import quantized_convolution

from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.packed_rows import MOST_ROWS, PackedRowsGeometry, PackedRowsTile
from tvm_mpq.kernels.packed_rows_program import packed_rows
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.tiles import ConvolutionTile
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.packing import pack_channels, pack_factors, pack_weights
from tvm_mpq.tuning.features import features
from tvm_mpq.tuning.record import tile_from_json, tile_to_json

INSTRUCTIONS = [name for name in TARGETS if name != "generic"]


def _spec(
    instruction: str, rows: int, channels: int, outputs: int, bits: int = 4, group: int = 0
) -> KernelSpec:
    shape = ConvolutionShape(rows, 1, 1, channels, outputs)
    return KernelSpec("matmul", shape, "uint8", Output("uint8"), instruction, bits, group)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.integers(1, MOST_ROWS),
    channels=st.sampled_from([64, 65, 96, 127, 256, 333]),
    outputs=st.sampled_from([1, 7, 8, 48, 64, 65, 130, 192]),
    bits=st.sampled_from([2, 3, 4, 4]),
    group=st.sampled_from([0, 0, 32, 64, 96]),
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    to_float=st.booleans(),
    at=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_has_the_bytes_of_numpy(
    instruction: str,
    rows: int,
    channels: int,
    outputs: int,
    bits: int,
    group: int,
    zeros: tuple[int, int],
    to_float: bool,
    at: float,
    seed: int,
) -> None:
    """Half of codes and activations are extreme: sums that saturate, or are widened too late, would show."""
    require(instruction)
    spec = _spec(instruction, rows, channels, outputs, bits, group).by_packed_rows()
    assert spec is not None
    spec = replace(spec, out=Output("float32")) if to_float else spec
    rng = np.random.default_rng(seed)
    most = 2 ** (bits - 1) - 1
    codes = rng.integers(-most, most + 1, (outputs, channels, 1, 1))
    codes = np.where(rng.random(codes.shape) < 0.5, most * rng.choice([-1, 1], (outputs, 1, 1, 1)), codes)
    codes = codes.astype(np.int8)
    q = np.where(
        rng.random((rows, channels)) < 0.5, rng.choice([0, 255]), rng.integers(0, 256, (rows, channels))
    )
    q = q.astype(np.uint8)
    bias = rng.integers(-(2**16), 2**16, outputs).astype(np.int32)
    multiplier = (rng.random(outputs) * 2**-10).astype(np.float32)
    row, multiplied, weights = spec.row, codes, []
    if group:
        factors = rng.integers(1, 127 // most + 1, (outputs, 1, -(-channels // group))).astype(np.int8)
        each = np.repeat(factors[:, 0], group, axis=1)[:, :channels, None, None]
        multiplied = codes * each
        weights = [pack_factors(factors, 1, row.lanes)]
    weights.insert(0, pack_weights(codes, 1, row.lanes, row.group, row.words, row.nibbles))
    tiles = [tile for tile in spec.space() if isinstance(tile, PackedRowsTile)]
    found = run(
        spec.schedule(tiles[int(at * len(tiles))]),
        instruction,
        q,
        *weights,
        pack_channels(fold_zero_point(bias, multiplied, zeros[0] - spec.input_offset), 1, row.lanes),
        pack_channels(multiplier, 1, row.lanes),
        np.array(zeros, np.int32),
    )
    image = q[:, None, None, :]
    expected = quantized_convolution(image, multiplied, bias, multiplier, zeros, spec.shape, spec.out)
    np.testing.assert_array_equal(found, expected, strict=True)


def test_longest_int16_sums_are_exact() -> None:
    """The worst step: all codes and activations at one end."""
    require("avx2")
    for code, q in ((7, 0), (-7, 0), (7, 255), (-7, 255)):
        codes = np.full((8, 256), code, np.int8)
        geometry = PackedRowsGeometry(1, 256, 8, 0, "avx2")
        function = packed_rows(geometry, Output("float32"), PackedRowsTile(1, 1))
        zero, one = np.zeros((1, 1, 8), np.int32), np.ones((1, 1, 8), np.float32)
        weights = pack_weights(codes[:, :, None, None], 1, 8, geometry.step, geometry.words, nibbles=True)
        x = np.full((1, 256), q, np.uint8)
        found = run(function, "avx2", x, weights, zero, one, np.zeros(2, np.int32))
        np.testing.assert_array_equal(found, np.full((1, 8), code * (q - 128) * 256, np.float32))


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_is_chosen_for_few_rows_of_packed_codes(instruction: str) -> None:
    chosen = _spec(instruction, 1, 512, 1000).faster()
    assert chosen.family == "packed_rows"
    assert chosen.base == chosen.key == _spec(instruction, 1, 512, 1000)
    assert _spec(instruction, 4, 512, 1000, group=32).faster().family == "packed_rows"
    for other in (
        _spec(instruction, 5, 512, 1000),
        _spec(instruction, 1, 512, 1000, bits=5),
        _spec(instruction, 1, 512, 1000, group=16),
        _spec(instruction, 1, 12, 1000),
    ):
        assert other.faster() == other


def test_generic_targets_keep_plain_code() -> None:
    spec = _spec("generic", 1, 512, 1000)
    assert spec.faster() == spec


def test_tiles_of_both_algorithms_are_searched_and_logged() -> None:
    spec = _spec("avx2", 2, 512, 1000)
    tiles = spec.space()
    assert {type(tile) for tile in tiles} == {ConvolutionTile, PackedRowsTile}
    assert isinstance(tiles[0], PackedRowsTile)
    assert [tile_from_json(tile_to_json(tile)) for tile in tiles] == tiles
    assert np.isfinite(features(spec, tiles)[:, :5]).all()
    assert spec.with_tile(tiles[0]).family == "packed_rows"
    direct = next(tile for tile in tiles if isinstance(tile, ConvolutionTile))
    assert spec.with_tile(tiles[0]).with_tile(direct) == spec
