"""Convolutions and matrix multiplications on AMX: bit for bit the integers of the reference, chosen where good."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import require, run
from reference import half_extreme, quantized_convolution, quantized_sum

from tvm_mpq.cost.work import kernel_work
from tvm_mpq.kernels.amx import BLOCKINGS, AmxGeometry, AmxTile, amx_fits, amx_tiles, default_amx_tile
from tvm_mpq.kernels.amx_instructions import MOST_BYTES, TILES
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.quantization.addition import addition_factors
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.transform.weight_layout import weight_layout

EXAMPLES = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
ZEROS = st.tuples(st.integers(0, 255), st.integers(0, 255))


@st.composite
def shapes(draw: st.DrawFn) -> ConvolutionShape:
    """Convolutions that tiles fit: of every kind of rows, with channels that fill no tile."""
    kernel = draw(st.sampled_from([(1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (2, 1)]))
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 1), (1, 2)]))
    padding = tuple(draw(st.integers(0, k // 2)) for k in (*kernel, *kernel))
    height = draw(st.integers(max(5, kernel[0]), 15))
    width = draw(st.integers(max(5, kernel[1]), 21))
    channels = draw(st.sampled_from([1, 3, 4, 16, 17, 24, 32, 40, 60, 64, 68, 96, 144]))
    outputs = draw(st.sampled_from([1, 8, 16, 17, 24, 32, 40, 48, 80]))
    batch = draw(st.integers(1, 3))
    return ConvolutionShape(batch, height, width, channels, outputs, kernel, stride, padding)  # type: ignore[arg-type]


def tile_for(draw: st.DrawFn, shape: ConvolutionShape) -> AmxTile | None:
    """The default tile, or any."""
    if draw(st.booleans()):
        return None
    geometry = AmxGeometry(shape)
    rows, columns = draw(st.sampled_from(BLOCKINGS))
    groups = -(-geometry.blocks // columns)
    each = draw(st.sampled_from([d for d in range(1, groups + 1) if groups % d == 0]))
    return AmxTile(rows, columns, draw(st.integers(1, -(-geometry.row_tiles // rows))), each)


def data(
    shape: ConvolutionShape, seed: int, largest: int = 127
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Activations, codes, biases and multipliers; a half of the first two at their ends."""
    rng = np.random.default_rng(seed)
    q = half_extreme(rng, 0, 255, (shape.batch, shape.height, shape.width, shape.in_channels))
    codes = half_extreme(rng, -largest, largest, (shape.out_channels, shape.in_channels, *shape.kernel))
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    spread = np.float32(2e-2 / np.sqrt(codes[0].size))
    multiplier = (rng.random(shape.out_channels) * spread).astype(np.float32) + np.float32(1e-6)
    return q.astype(np.uint8), codes.astype(np.int8), bias, multiplier


def arguments(
    spec: KernelSpec, values: tuple[np.ndarray, ...], zeros: tuple[int, int]
) -> tuple[np.ndarray, ...]:
    q, codes, bias, multiplier = values
    layout = weight_layout(spec)
    folded = fold_zero_point(bias, codes, zeros[0])
    grid = np.array(zeros, np.int32)
    rows = q.reshape(-1, spec.shape.in_channels)
    return rows, layout.pack(codes), layout.pack_each(folded), layout.pack_each(multiplier), grid


@EXAMPLES
@given(
    drawn=st.data(), shape=shapes(), bits=st.sampled_from([8, 4, 2, 6]), zeros=ZEROS, seed=st.integers(0, 99)
)
def test_convolution(
    drawn: st.DataObject, shape: ConvolutionShape, bits: int, zeros: tuple[int, int], seed: int
) -> None:
    require("amx")
    spec = KernelSpec("conv2d", shape, "uint8", Output("uint8"), "amx", bits).by_amx()
    assert (spec is None) == (not amx_fits(AmxGeometry(shape, bits <= 4)))
    if spec is None:
        return
    values = data(shape, seed, 2 ** (bits - 1) - 1)
    tile = drawn.draw(st.composite(tile_for)(shape))
    out = run(spec.schedule(tile), "amx", *arguments(spec, values, zeros))
    np.testing.assert_array_equal(out, quantized_convolution(*values, zeros, shape), strict=True)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_a_tensor_is_added_to_the_result(kernel: tuple[int, int]) -> None:
    require("amx")
    pad = kernel[0] // 2
    shape = ConvolutionShape(1, 9, 10, 32, 48, kernel, (1, 1), (pad,) * 4)
    spec = KernelSpec("conv2d", shape, "uint8", Output("uint8"), "amx").faster().adding()
    assert (spec.family, spec.adds) == ("conv2d_amx", True)
    values, zeros = data(shape, 3), (9, 120)
    other = np.random.default_rng(4).integers(0, 256, (shape.rows, 48)).astype(np.uint8)
    grids, total = (Grid(np.float32(0.02), 120), Grid(np.float32(0.05), 7)), Grid(np.float32(0.04), 33)
    factors, multiplier = addition_factors(*grids, total)
    out = run(
        spec.schedule(),
        "amx",
        *arguments(spec, values, zeros),
        other,
        np.array(factors, np.int32),
        np.array([multiplier], np.float32),
        np.array([0, 33], np.int32),
    )
    codes = quantized_convolution(*values, zeros, shape)
    np.testing.assert_array_equal(out, quantized_sum(codes, other, grids, total))


def test_floats_leave_with_their_bounds() -> None:
    require("amx")
    shape, zeros = ConvolutionShape(1, 8, 8, 40, 24), (77, 0)
    out = Output("float32", -0.5, 2.0)
    spec = KernelSpec("matmul", shape, "uint8", out, "amx").by_amx()
    assert spec is not None
    values = data(shape, 5)
    result = run(spec.schedule(), "amx", *arguments(spec, values, zeros))
    np.testing.assert_array_equal(result, quantized_convolution(*values, zeros, shape, out))


@given(shape=shapes(), nibbles=st.booleans())
def test_every_tile_shares_all_rows_and_columns(shape: ConvolutionShape, nibbles: bool) -> None:
    geometry = AmxGeometry(shape, nibbles)
    multiple = 8 if nibbles else 4
    assert geometry.step % multiple == 0
    assert geometry.step <= MOST_BYTES
    assert shape.run <= geometry.step * geometry.steps < shape.run + multiple * geometry.steps
    for tile in [default_amx_tile(geometry), *amx_tiles(geometry)]:
        assert tile.rows * tile.columns + tile.rows + tile.columns <= TILES
        assert -(-geometry.blocks // tile.columns) % tile.column_groups == 0
        assert 1 <= tile.row_groups <= -(-geometry.row_tiles // tile.rows)


def test_where_tiles_are_used() -> None:
    conv = KernelSpec("conv2d", ConvolutionShape(1, 14, 14, 256, 256), "uint8", Output("uint8"), "amx")
    assert conv.faster().family == "conv2d_amx"
    assert conv.faster().key == conv.key
    assert kernel_work(conv.faster()).name == "tdpbusd"
    assert default_amx_tile(AmxGeometry(conv.shape)) in conv.space()
    assert replace(conv, weight_bits=4).faster().row.nibbles
    # Factors of groups, one row, floats, and machines without tiles.
    assert replace(conv, weight_bits=4, weight_group=32).faster().family == "conv2d"
    one = KernelSpec("matmul", ConvolutionShape(1, 1, 1, 512, 1000), "uint8", Output("float32"), "amx")
    assert one.faster().family == "matmul"
    assert replace(conv, instruction="avx512bf16").faster().family == "conv2d"
    assert replace(conv, in_dtype="float32", out=Output("float32")).by_amx() is None
