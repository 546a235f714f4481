"""Winograd kernels: integers bit for bit a direct convolution, floats within rounding, chosen where good."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import require, run
from reference import convolve, quantized_convolution

from tvm_mpq.cost.work import kernel_work
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.intrinsic import Intrinsic, winograd_intrinsic
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.winograd import (
    MOST_INTEGER_CHANNELS,
    WinogradGeometry,
    WinogradTile,
    default_winograd_tile,
    winograd_fits,
    winograd_geometries,
    winograd_geometry,
    winograd_tiles,
)
from tvm_mpq.kernels.winograd_program import winograd
from tvm_mpq.quantization.packing import pack_channels
from tvm_mpq.quantization.winograd import pack_winograd
from tvm_mpq.transform.weight_layout import weight_layout

EXAMPLES = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
SAME = (1, 1, 1, 1)


def same(height: int, width: int, channels: int, outputs: int, batch: int = 1) -> ConvolutionShape:
    return ConvolutionShape(batch, height, width, channels, outputs, (3, 3), (1, 1), SAME)


@st.composite
def shapes(draw: st.DrawFn) -> ConvolutionShape:
    bit = st.integers(0, 1)
    padding = (draw(bit), draw(bit), draw(bit), draw(bit))
    height = draw(st.integers(max(1, 3 - padding[0] - padding[2]), 13))
    width = draw(st.integers(max(1, 3 - padding[1] - padding[3]), 13))
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 17, 24, 32, 40]))
    outputs = draw(st.sampled_from([1, 4, 7, 8, 12, 16, 17, 24, 32, 40]))
    return ConvolutionShape(
        draw(st.integers(1, 3)), height, width, channels, outputs, (3, 3), (1, 1), padding
    )


@st.composite
def tiles(draw: st.DrawFn, across: int) -> WinogradTile | None:
    """A tile of every mode, or the default one; a task of one column block fits every shape."""
    if draw(st.booleans()):
        return None
    rows = draw(st.sampled_from([1, 4, 5, 6]))
    count = rows * draw(st.integers(1, 4))
    return WinogradTile(
        rows, count, 1, draw(st.sampled_from([1, 2, 4])), draw(st.booleans()), draw(st.booleans()), across
    )


def _row(instruction: str, in_dtype: str) -> Intrinsic:
    row = winograd_intrinsic(instruction, in_dtype)
    assert row is not None
    return row


def _run_integer(
    instruction: str,
    shape: ConvolutionShape,
    across: int,
    tile: WinogradTile | None,
    q: np.ndarray,
    codes: np.ndarray,
    bias: np.ndarray,
    multiplier: np.ndarray,
    zeros: tuple[int, int],
    nibbles: bool = False,
) -> np.ndarray:
    row = replace(_row(instruction, "uint8"), nibbles=nibbles)
    geometry = WinogradGeometry(shape, row, across)
    return run(
        winograd(shape, "uint8", Output("uint8"), row, tile or default_winograd_tile(geometry)),
        instruction,
        q.reshape(-1, shape.in_channels),
        pack_winograd(codes, geometry.channels, geometry.block, row.group, nibbles),
        pack_channels(bias, 1, geometry.block),
        pack_channels(multiplier, 1, geometry.block),
        np.array(zeros, np.int32),
    )


@pytest.mark.parametrize("across", [2, 4])
@pytest.mark.parametrize("instruction", ["avx2", "avx512"])
@EXAMPLES
@given(
    data=st.data(),
    shape=shapes(),
    zeros=st.tuples(st.sampled_from([0, 1, 117, 255]), st.integers(0, 255)),
    extreme=st.booleans(),
    nibbles=st.booleans(),
    seed=st.integers(0, 99),
)
def test_integers_are_exact(
    instruction: str,
    across: int,
    data: st.DataObject,
    shape: ConvolutionShape,
    zeros: tuple[int, int],
    extreme: bool,
    nibbles: bool,
    seed: int,
) -> None:
    require(instruction)
    most = 7 if nibbles else 127
    rng = np.random.default_rng(seed)
    image = (shape.batch, shape.height, shape.width, shape.in_channels)
    filters = (shape.out_channels, shape.in_channels, 3, 3)
    if extreme:
        q = rng.choice(np.array([0, 255], np.uint8), image)
        codes = rng.choice(np.array([-most, most], np.int8), filters)
    else:
        q = rng.integers(0, 256, image).astype(np.uint8)
        codes = rng.integers(-most, most + 1, filters).astype(np.int8)
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    spread = 4e-3 / np.sqrt(9 * shape.in_channels)
    multiplier = (rng.random(shape.out_channels) * spread + 1e-6).astype(np.float32)
    tile = data.draw(tiles(across))
    out = _run_integer(instruction, shape, across, tile, q, codes, bias, multiplier, zeros, nibbles)
    expected = quantized_convolution(q, codes, bias, multiplier, zeros, shape)
    np.testing.assert_array_equal(out, expected, strict=True)


@pytest.mark.parametrize("across", [2, 4])
@pytest.mark.parametrize(("zero", "code"), [(0, 127), (0, -127), (255, 127), (255, -127)])
def test_the_largest_sums_do_not_overflow(zero: int, code: int, across: int) -> None:
    """Every product at its extreme, in as many channels as int32 is claimed to hold."""
    require("avx2")
    channels = MOST_INTEGER_CHANNELS[across]
    shape = ConvolutionShape(1, 5, 6, channels, 8, (3, 3), (1, 1), (1, 0, 0, 1))
    q = np.full((1, 5, 6, channels), 255 - zero, np.uint8)
    codes = np.full((8, channels, 3, 3), code, np.int8)
    # A bias near minus the largest sum leaves numbers that 8 bits tell apart.
    largest = (255 - 2 * zero) * code * 9 * channels
    bias = np.full(8, -largest, np.int32)
    multiplier = np.full(8, 2e-7, np.float32)
    out = _run_integer("avx2", shape, across, None, q, codes, bias, multiplier, (zero, 128))
    expected = quantized_convolution(q, codes, bias, multiplier, (zero, 128), shape)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(out, expected, strict=True)


@EXAMPLES
@given(shape=shapes(), across=st.sampled_from([2, 4]), zero=st.integers(0, 255), seed=st.integers(0, 99))
def test_integers_to_float_are_exact(shape: ConvolutionShape, across: int, zero: int, seed: int) -> None:
    require("avx2")
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 256, (shape.batch, shape.height, shape.width, shape.in_channels)).astype(np.uint8)
    codes = rng.integers(-127, 128, (shape.out_channels, shape.in_channels, 3, 3)).astype(np.int8)
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    multiplier = (rng.random(shape.out_channels) + 0.1).astype(np.float32)
    row = _row("avx2", "uint8")
    geometry = WinogradGeometry(shape, row, across)
    out = run(
        winograd(shape, "uint8", Output("float32", low=-9.5, high=1e4), row, default_winograd_tile(geometry)),
        "avx2",
        q.reshape(-1, shape.in_channels),
        pack_winograd(codes, geometry.channels, geometry.block, row.group),
        pack_channels(bias, 1, geometry.block),
        pack_channels(multiplier, 1, geometry.block),
        np.array([zero, 0], np.int32),
    )
    acc = convolve(q.astype(np.int64) - zero, codes.astype(np.int64), shape).astype(np.int32) + bias
    expected = np.clip(acc.astype(np.float32) * multiplier, np.float32(-9.5), np.float32(1e4))
    np.testing.assert_array_equal(out, expected.reshape(shape.rows, -1), strict=True)


@pytest.mark.parametrize("instruction", ["generic", "avx2", "avx512"])
@EXAMPLES
@given(shape=shapes(), tile=tiles(2), seed=st.integers(0, 99))
def test_floats_are_close(
    instruction: str, shape: ConvolutionShape, tile: WinogradTile | None, seed: int
) -> None:
    require(instruction)
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((shape.batch, shape.height, shape.width, shape.in_channels)).astype(np.float32)
    w = rng.standard_normal((shape.out_channels, shape.in_channels, 3, 3)).astype(np.float32)
    bias = rng.standard_normal(shape.out_channels).astype(np.float32)
    row = _row(instruction, "float32")
    geometry = WinogradGeometry(shape, row)
    out = run(
        winograd(shape, "float32", Output("float32", low=0.0), row, tile or default_winograd_tile(geometry)),
        instruction,
        x.reshape(-1, shape.in_channels),
        pack_winograd(w, geometry.channels, geometry.block, row.group),
        pack_channels(bias, 1, geometry.block),
    )
    expected = np.maximum(_convolve_float(x, w, shape) + bias, 0).reshape(shape.rows, -1)
    np.testing.assert_allclose(out, expected, rtol=0, atol=2e-6 * 9 * np.sqrt(shape.in_channels) + 1e-6)


def _convolve_float(x: np.ndarray, w: np.ndarray, shape: ConvolutionShape) -> np.ndarray:
    top, left, bottom, right = shape.padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.einsum("nhwcrs,ocrs->nhwo", windows, w.astype(np.float64))


def _family(shape: ConvolutionShape, in_dtype: str, instruction: str) -> str:
    out = Output("uint8" if in_dtype == "uint8" else "float32")
    return KernelSpec("conv2d", shape, in_dtype, out, instruction).faster().family


@pytest.mark.parametrize("in_dtype", ["uint8", "float32"])
def test_large_layers_are_computed_by_it_and_what_it_cannot_do_is_not(in_dtype: str) -> None:
    assert _family(same(56, 56, 64, 64), in_dtype, "avx2") == "winograd"
    assert _family(same(28, 28, 128, 128), in_dtype, "avx2") == "winograd"
    strided = ConvolutionShape(1, 56, 56, 64, 64, (3, 3), (2, 2), SAME)
    dilated = ConvolutionShape(1, 56, 56, 64, 64, (3, 3), (1, 1), SAME, (2, 2))
    grouped = ConvolutionShape(1, 56, 56, 64, 64, (3, 3), (1, 1), SAME, (1, 1), 2)
    wide = ConvolutionShape(1, 56, 56, 64, 64, (5, 5), (1, 1), (2, 2, 2, 2))
    for shape in (strided, dilated, grouped, wide):
        assert _family(shape, in_dtype, "avx2") == "conv2d"


def test_codes_of_4_bits_stay_packed() -> None:
    """Both algorithms read two codes a byte; factors of groups are the direct kernel's, or in codes of whole bytes."""

    def spec(shape: ConvolutionShape, bits: int = 4, group: int = 0) -> KernelSpec:
        return KernelSpec("conv2d", shape, "uint8", Output("uint8"), "avx2", bits, group, 4)

    for shape in (same(56, 56, 64, 64), same(28, 28, 128, 128), same(14, 14, 256, 256)):
        chosen = spec(shape).faster()
        assert chosen.family == "winograd"
        assert math.prod(weight_layout(chosen).shape) == 9 * shape.in_channels * shape.out_channels // 2
    assert spec(same(7, 7, 512, 512)).faster().family == "conv2d"
    assert spec(same(56, 56, 64, 64), group=32).by_winograd() is None
    by_winograd = spec(same(56, 56, 64, 64), group=12).by_winograd()
    assert by_winograd is not None
    assert not by_winograd.row.nibbles


def test_it_is_not_chosen_where_it_is_slower() -> None:
    assert (
        _family(same(56, 56, 64, 64), "uint8", "avx512vnni") == "conv2d"
    )  # byte instructions are faster direct
    assert _family(same(56, 56, 1, 4), "uint8", "avx2") == "conv2d"  # channels would be padded 16-fold
    assert (
        _family(same(3, 3, 64, 64), "uint8", "avx2") == "conv2d"
    )  # half of the tiles' results are not needed


def test_integers_that_could_overflow_are_left_to_what_holds_them() -> None:
    row = _row("avx2", "uint8")
    wide, most = MOST_INTEGER_CHANNELS[4], MOST_INTEGER_CHANNELS[2]
    assert [g.across for g in winograd_geometries(same(28, 28, wide, 64), row)] == [2, 4]
    assert [g.across for g in winograd_geometries(same(28, 28, wide + 1, 64), row)] == [2]
    assert winograd_fits(same(28, 28, most, 64), "uint8")
    assert not winograd_fits(same(28, 28, most + 1, 64), "uint8")
    assert winograd_fits(same(28, 28, most + 1, 64), "float32")
    assert _family(same(28, 28, most + 1, 64), "uint8", "avx2") == "conv2d"


def test_large_images_take_wide_tiles_and_floats_do_not() -> None:
    integers = _row("avx2", "uint8")
    for shape in (same(56, 56, 64, 64), same(28, 28, 128, 128), same(14, 14, 256, 256)):
        assert winograd_geometry(shape, integers).across == 4
        assert winograd_geometry(shape, _row("avx2", "float32")).across == 2
        offered = {tile.across for tile in winograd_tiles(shape, integers)}
        assert offered == {2, 4}
    # Of five columns the second tile of four would need one.
    assert winograd_geometry(same(5, 5, 128, 128), integers).across == 2


def test_the_least_multiplications_are_those_of_the_widest_tile() -> None:
    def steps(channels: int, in_dtype: str) -> float:
        spec = KernelSpec("conv2d", same(28, 28, channels, 64), in_dtype, Output(in_dtype), "avx2")
        by_winograd = spec.by_winograd()
        assert by_winograd is not None
        work = kernel_work(by_winograd)
        return work.steps / work.macs

    assert steps(460, "uint8") == 24 / 72
    assert steps(461, "uint8") == steps(64, "float32") == 16 / 36
