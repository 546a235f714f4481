"""Sums, rescaling, concatenation and the borders of 8-bit regions against NumPy, on each instruction set."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run
from reference import quantized_sum, rescaled

from tvm_mpq.kernels import elementwise, joining
from tvm_mpq.kernels.convolution import Output
from tvm_mpq.kernels.quantize_planes import MOST_CHANNELS, quantize_planes
from tvm_mpq.kernels.schedule_default import schedule_default
from tvm_mpq.quantization.addition import addition_factors
from tvm_mpq.quantization.grid import Grid

EXAMPLES = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
INSTRUCTIONS = pytest.mark.parametrize("instruction", list(TARGETS))
SHAPES = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple)
PLANES = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
IMAGES = st.tuples(st.integers(1, 2), st.integers(2, MOST_CHANNELS), st.integers(1, 4), st.integers(1, 40))
SEEDS = st.integers(0, 99)


@st.composite
def grids(draw: st.DrawFn, least: float = -4.0, most: float = 4.0) -> Grid:
    scale = float(np.float32(10.0 ** draw(st.floats(least, most))))
    return Grid(scale, draw(st.sampled_from([0, 1, 114, 128, 255])))


def codes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Every code is likely, the extremes more so."""
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 256, shape)
    return np.where(rng.random(shape) < 0.1, rng.choice([0, 255], shape), q).astype(np.uint8)


def reals(shape: tuple[int, ...], seed: int, grid: Grid) -> np.ndarray:
    """Values around the grid, exactly between its codes, far beyond it, and at float32's ends."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 150, shape) * grid.scale
    halves = (rng.integers(-300, 300, shape) + 0.5) * grid.scale
    ends = rng.choice([1e30, -1e30, 3.4e38, -3.4e38, 1e-40, -0.0, 0.0, np.inf, -np.inf], shape)
    choice = rng.random(shape)
    return np.where(choice < 0.6, x, np.where(choice < 0.8, halves, ends)).astype(np.float32)


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def float32(*values: float) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.array(values, np.float64).astype(np.float32)


def sum_of(
    instruction: str, a: np.ndarray, b: np.ndarray, inputs: tuple[Grid, Grid], out: Grid
) -> np.ndarray:
    factors, multiplier = addition_factors(*inputs, out)
    kernel = schedule_default(elementwise.add(a.shape, Output("uint8")))
    return run(kernel, instruction, a, b, factors, float32(multiplier), int32(0, out.zero_point))


@INSTRUCTIONS
@EXAMPLES
@given(shape=SHAPES, inputs=st.tuples(grids(), grids()), out=grids(), seed=SEEDS)
def test_add(
    instruction: str, shape: tuple[int, ...], inputs: tuple[Grid, Grid], out: Grid, seed: int
) -> None:
    require(instruction)
    a, b = codes(shape, seed), codes(shape, seed + 1)
    result = sum_of(instruction, a, b, inputs, out)
    np.testing.assert_array_equal(result, quantized_sum(a, b, inputs, out), strict=True)


@EXAMPLES
@given(
    inputs=st.tuples(grids(-3, 0), grids(-3, 0)),
    factor=st.floats(0.5, 3.0),
    zero=st.integers(0, 255),
    seed=SEEDS,
)
def test_fixed_point_sums_are_real_sums(
    inputs: tuple[Grid, Grid], factor: float, zero: int, seed: int
) -> None:
    """Also with scales 1000 : 1, a code differs from the exact sum's only within 2^-11 of a tie."""
    out = Grid(float(np.float32(factor * max(grid.scale for grid in inputs))), zero)
    a, b = codes((4096,), seed), codes((4096,), seed + 1)
    exact = sum(
        (q.astype(np.float64) - grid.zero_point) * grid.scale for q, grid in zip((a, b), inputs, strict=True)
    )
    real = np.clip(exact / out.scale + zero, 0, 255)
    assert np.abs(quantized_sum(a, b, inputs, out) - real).max() <= 0.5 + 2.0**-11


@pytest.mark.parametrize("smaller", [1e-3, 1.0, 2.0**-100, 1e-30])
@pytest.mark.parametrize("out", [1e-30, 1e-9, 2.0**-20, 1.0, 1e30])
def test_sums_of_any_scales_stay_inside_int32(smaller: float, out: float) -> None:
    q = np.arange(256, dtype=np.uint8)
    a, b = np.repeat(q, 256), np.tile(q, 256)
    inputs = Grid(1.0, 3), Grid(float(np.float32(smaller)), 250)
    grid = Grid(float(np.float32(out)), 100)
    result = sum_of("generic", a, b, inputs, grid)
    np.testing.assert_array_equal(result, quantized_sum(a, b, inputs, grid), strict=True)
    exact = (a - 3.0) + (b - 250.0) * inputs[1].scale
    real = np.clip(exact / grid.scale + 100, 0, 255)
    # A sum within the factors' own rounding of zero may have either sign.
    clear = np.abs(exact) > 255 * 2.0**-20
    assert np.abs(result.astype(float) - real)[clear].max() <= 0.5 + 255 * 2.0**-21 / grid.scale + 2.0**-11


@INSTRUCTIONS
@EXAMPLES
@given(shape=SHAPES, source=grids(), out=grids(), seed=SEEDS)
def test_rescale(instruction: str, shape: tuple[int, ...], source: Grid, out: Grid, seed: int) -> None:
    require(instruction)
    q = codes(shape, seed)
    result = run(
        schedule_default(elementwise.rescale(shape)),
        instruction,
        q,
        float32(source.scale / out.scale),
        int32(source.zero_point, out.zero_point),
    )
    np.testing.assert_array_equal(result, rescaled(q, source, out), strict=True)


@pytest.mark.parametrize("ratio", [255.0, 256.0, 300.0, 2.0**23, 1e9, 1e38])
def test_rescaling_to_a_tiny_range_saturates_on_the_right_side(ratio: float) -> None:
    q = np.arange(256, dtype=np.uint8)
    kernel = schedule_default(elementwise.rescale((256,)))
    result = run(kernel, "generic", q, float32(ratio), int32(100, 120))
    real = np.clip((q.astype(np.float64) - 100) * ratio + 120, 0, 255)
    np.testing.assert_array_equal(result, real.astype(np.uint8))


@INSTRUCTIONS
@EXAMPLES
@given(shape=SHAPES, grid=grids(-30, 30), seed=SEEDS)
def test_quantize_and_dequantize(instruction: str, shape: tuple[int, ...], grid: Grid, seed: int) -> None:
    require(instruction)
    x = reals(shape, seed, grid)
    kernel = schedule_default(elementwise.quantize_tensor(shape))
    q = run(kernel, instruction, x, float32(grid.inverse_scale), int32(0, grid.zero_point))
    np.testing.assert_array_equal(q, grid.quantize(x), strict=True)
    kernel = schedule_default(elementwise.dequantize_tensor(shape))
    real = run(kernel, instruction, q, float32(grid.scale), int32(grid.zero_point, 0))
    np.testing.assert_array_equal(real, grid.dequantize(q), strict=True)


@INSTRUCTIONS
@EXAMPLES
@given(shape=PLANES, grid=grids(-30, 30), seed=SEEDS)
def test_quantize_to_pixels(
    instruction: str, shape: tuple[int, int, int, int], grid: Grid, seed: int
) -> None:
    require(instruction)
    x = reals(shape, seed, grid)
    kernel = schedule_default(elementwise.quantize_to_pixels(shape))
    q = run(kernel, instruction, x, float32(grid.inverse_scale), int32(0, grid.zero_point))
    pixels = grid.quantize(x).transpose(0, 2, 3, 1).reshape(-1, shape[1])
    np.testing.assert_array_equal(q, pixels, strict=True)


@INSTRUCTIONS
@EXAMPLES
@given(shape=IMAGES, grid=grids(-30, 30), seed=SEEDS)
def test_quantize_planes(instruction: str, shape: tuple[int, int, int, int], grid: Grid, seed: int) -> None:
    require(instruction)
    x = reals(shape, seed, grid)
    kernel = schedule_default(quantize_planes(shape))
    q = run(kernel, instruction, x, float32(grid.inverse_scale), int32(0, grid.zero_point))
    pixels = grid.quantize(x).transpose(0, 2, 3, 1).reshape(-1, shape[1])
    np.testing.assert_array_equal(q, pixels, strict=True)


@INSTRUCTIONS
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@EXAMPLES
@given(shape=PLANES, seed=SEEDS)
def test_to_pixels_and_back(
    instruction: str, dtype: str, shape: tuple[int, int, int, int], seed: int
) -> None:
    require(instruction)
    x = codes(shape, seed).astype(dtype)
    pixels = run(schedule_default(elementwise.to_pixels(shape, dtype)), instruction, x)
    np.testing.assert_array_equal(pixels, x.transpose(0, 2, 3, 1).reshape(-1, shape[1]), strict=True)
    back = run(schedule_default(elementwise.from_pixels(shape, dtype)), instruction, pixels)
    np.testing.assert_array_equal(back, x, strict=True)


@INSTRUCTIONS
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@EXAMPLES
@given(data=st.data(), shape=SHAPES, out=grids(), seed=SEEDS)
def test_concat(
    instruction: str, dtype: str, data: st.DataObject, shape: tuple[int, ...], out: Grid, seed: int
) -> None:
    require(instruction)
    axis = data.draw(st.integers(0, len(shape) - 1), "axis")
    extents = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5), "extents")
    shapes = [(*shape[:axis], extent, *shape[axis + 1 :]) for extent in extents]
    inputs = [codes(each, seed + place) for place, each in enumerate(shapes)]
    rows = math.prod(shape[:axis])
    held = [each.reshape(rows, -1) for each in inputs]
    if dtype == "float32":
        floats = [each.astype(np.float32) for each in held]
        result = run(joining.concat(shapes, axis, dtype, [False] * len(shapes)), instruction, *floats)
        np.testing.assert_array_equal(result, np.concatenate(floats, 1), strict=True)
        return
    sources = data.draw(st.lists(grids(), min_size=len(shapes), max_size=len(shapes)), "grids")
    sources[0] = out if seed % 2 else sources[0]
    rescaled_ones = [grid != out for grid in sources]
    multipliers = float32(*(grid.scale / out.scale for grid in sources))
    zeros = int32(*(grid.zero_point for grid in (*sources, out)))
    scalars = [multipliers, zeros] if any(rescaled_ones) else []
    result = run(joining.concat(shapes, axis, dtype, rescaled_ones), instruction, *held, *scalars)
    parts = [rescaled(q, grid, out) for q, grid in zip(inputs, sources, strict=True)]
    np.testing.assert_array_equal(result, np.concatenate(parts, axis).reshape(rows, -1), strict=True)


@INSTRUCTIONS
@EXAMPLES
@given(
    shape=SHAPES,
    bounds=st.sampled_from([(0.0, np.inf), (0.0, 6.0), (-np.inf, np.inf), (-1.0, np.inf), (-np.inf, 2.0)]),
    seed=SEEDS,
)
def test_float_add_and_activation(
    instruction: str, shape: tuple[int, ...], bounds: tuple[float, float], seed: int
) -> None:
    require(instruction)
    rng = np.random.default_rng(seed)
    a, b = rng.normal(0, 4, (2, *shape)).astype(np.float32)
    out = Output("float32", *bounds)
    result = run(schedule_default(elementwise.add(shape, out)), instruction, a, b)
    np.testing.assert_array_equal(result, np.clip(a + b, *bounds).astype(np.float32), strict=True)
    result = run(schedule_default(elementwise.activation(shape, out)), instruction, a)
    np.testing.assert_array_equal(result, np.clip(a, *bounds).astype(np.float32), strict=True)
