"""Sums, differences and products that broadcast, against NumPy, on each instruction set."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run
from reference import quantized_product, quantized_sum

from tvm_mpq.kernels import pointwise
from tvm_mpq.kernels.convolution import Output
from tvm_mpq.kernels.schedule_default import schedule_default
from tvm_mpq.quantization.addition import addition_factors
from tvm_mpq.quantization.grid import Grid

EXAMPLES = settings(
    max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
INSTRUCTIONS = pytest.mark.parametrize("instruction", list(TARGETS))
GRIDS = st.tuples(st.floats(-4, 4), st.sampled_from([0, 1, 114, 255])).map(
    lambda drawn: Grid(float(np.float32(10.0 ** drawn[0])), drawn[1])
)


@st.composite
def shapes(draw: st.DrawFn) -> pointwise.Broadcast:
    """Every axis is either both operands' or one's only."""
    rank = draw(st.integers(1, 5))
    out = draw(st.lists(st.integers(1, 9), min_size=rank, max_size=rank))
    if draw(st.booleans()):
        out[1 if rank == 4 else -1] = draw(st.sampled_from([16, 24, 33]))
    sides = draw(st.lists(st.sampled_from(["both", "both", "left", "right"]), min_size=rank, max_size=rank))
    left = [1 if side == "right" else extent for extent, side in zip(out, sides, strict=True)]
    right = [1 if side == "left" else extent for extent, side in zip(out, sides, strict=True)]
    return pointwise.Broadcast(tuple(left), tuple(right), tuple(out))


def held(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1]) if x.ndim == 4 else x


def codes(shape: tuple[int, ...], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    extremes = rng.choice([0, 255], shape)
    return np.where(rng.random(shape) < 0.2, extremes, rng.integers(0, 256, shape)).astype(np.uint8)


@INSTRUCTIONS
@EXAMPLES
@given(shape=shapes(), grids=st.tuples(GRIDS, GRIDS), out=GRIDS, seed=st.integers(0, 99))
def test_8_bit_arithmetic(
    instruction: str, shape: pointwise.Broadcast, grids: tuple[Grid, Grid], out: Grid, seed: int
) -> None:
    require(instruction)
    a, b = codes(shape.left, seed), codes(shape.right, seed + 1)
    ratio = np.float32(grids[0].scale * grids[1].scale / out.scale)
    zeros = np.array([grids[0].zero_point, grids[1].zero_point, out.zero_point], np.int32)
    kernel = schedule_default(pointwise.quantized_product(shape))
    result = run(kernel, instruction, held(a), held(b), np.array([ratio]), zeros)
    np.testing.assert_array_equal(result, held(quantized_product(a, b, grids, out)), strict=True)
    for subtract in (False, True):
        factors, multiplier = addition_factors(*grids, out, subtract)
        kernel = schedule_default(pointwise.quantized_sum(shape))
        zero = np.array([0, out.zero_point], np.int32)
        result = run(kernel, instruction, held(a), held(b), factors, np.array([multiplier]), zero)
        np.testing.assert_array_equal(result, held(quantized_sum(a, b, grids, out, subtract)), strict=True)


@EXAMPLES
@given(shape=shapes(), bounded=st.booleans(), seed=st.integers(0, 99))
def test_float_arithmetic(shape: pointwise.Broadcast, bounded: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.standard_normal(each).astype(np.float32) for each in (shape.left, shape.right))
    low, high = (-0.5, 1.0) if bounded else (-np.inf, np.inf)
    for name, function in (("add", np.add), ("sub", np.subtract), ("mul", np.multiply)):
        kernel = schedule_default(pointwise.binary(name, shape, Output("float32", low, high)))
        result = run(kernel, "generic", held(a), held(b))
        np.testing.assert_array_equal(result, held(np.clip(function(a, b), low, high)), strict=True)


def test_exact_products_are_real_products() -> None:
    """A code differs from the exact product's only where that is a tie but for float32's rounding."""
    grids, out = (Grid(0.03125, 100), Grid(0.0078125, 0)), Grid.from_range(-4.0, 9.0)
    a, b = np.repeat(np.arange(256), 256).astype(np.uint8), np.tile(np.arange(256), 256).astype(np.uint8)
    exact = (a.astype(float) - 100) * b * grids[0].scale * grids[1].scale / out.scale + out.zero_point
    error = np.abs(quantized_product(a, b, grids, out) - np.clip(exact, 0, 255))
    assert error.max() <= 0.5 + 1e-4


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e30])
def test_products_of_any_scales_saturate_on_the_right_side(scale: float) -> None:
    shape = pointwise.Broadcast((256,), (256,), (256,))
    a = np.arange(256, dtype=np.uint8)
    out = Grid(float(np.float32(scale)), 7)
    with np.errstate(over="ignore"):
        ratio = np.array([1.0 / out.scale]).astype(np.float32)
    kernel = schedule_default(pointwise.quantized_product(shape))
    result = run(kernel, "generic", a, a, ratio, np.array([100, 50, 7], np.int32))
    exact = (a.astype(float) - 100) * (a.astype(float) - 50) / out.scale + 7
    assert np.abs(result - np.clip(exact, 0, 255)).max() <= 0.5 + 1e-4
