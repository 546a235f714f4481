"""Max, average and global average pooling against NumPy, on each instruction set there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run
from reference import quantized_average, windows
from tvm.tirx import PrimFunc

from tvm_mpq.kernels import pooling
from tvm_mpq.kernels.convolution import ConvolutionShape
from tvm_mpq.kernels.schedule_default import schedule_default
from tvm_mpq.quantization.grid import Grid

EXAMPLES = settings(
    max_examples=10, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
INSTRUCTIONS = pytest.mark.parametrize("instruction", list(TARGETS))
SEEDS = st.integers(0, 99)
GRIDS = st.tuples(st.floats(-3, 3), st.sampled_from([0, 1, 117, 255])).map(
    lambda drawn: Grid(float(np.float32(10.0 ** drawn[0])), drawn[1])
)


@st.composite
def shapes(draw: st.DrawFn) -> ConvolutionShape:
    """Pools of which no window lies in the padding alone, as ONNX demands: it is narrower than the kernel."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    top, bottom = (draw(st.integers(0, kernel[0] - 1)) for _ in range(2))
    left, right = (draw(st.integers(0, kernel[1] - 1)) for _ in range(2))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 16, 19, 33, 40]))
    return ConvolutionShape(
        draw(st.integers(1, 3)),
        draw(st.integers(reach[0], reach[0] + 9)),
        draw(st.integers(reach[1], reach[1] + 9)),
        channels,
        channels,
        kernel,
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        (top, left, bottom, right),
        dilation,
    )


def codes(shape: ConvolutionShape, seed: int) -> np.ndarray:
    """Mostly low codes in half of the cases, where padding that counted would win."""
    rng = np.random.default_rng(seed)
    high = 256 if seed % 2 else 3
    dims = (shape.batch, shape.height, shape.width, shape.in_channels)
    return rng.integers(0, high, dims).astype(np.uint8)


def execute(kernel: PrimFunc, instruction: str, x: np.ndarray, *others: np.ndarray) -> np.ndarray:
    return run(schedule_default(kernel), instruction, x.reshape(-1, x.shape[-1]), *others)


@INSTRUCTIONS
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@EXAMPLES
@given(shape=shapes(), seed=SEEDS)
def test_max_pool(instruction: str, dtype: str, shape: ConvolutionShape, seed: int) -> None:
    require(instruction)
    x = codes(shape, seed).astype(dtype)
    if dtype == "float32":
        x = -100 - x
    result = execute(pooling.max_pool(shape, dtype), instruction, x)
    taps, _ = windows(x, shape, -np.inf)
    expected = taps.max(axis=0).reshape(shape.rows, -1).astype(dtype)
    np.testing.assert_array_equal(result, expected, strict=True)


@INSTRUCTIONS
@pytest.mark.parametrize("count_padding", [False, True])
@EXAMPLES
@given(shape=shapes(), source=GRIDS, out=GRIDS, seed=SEEDS)
def test_average_pool(
    instruction: str, count_padding: bool, shape: ConvolutionShape, source: Grid, out: Grid, seed: int
) -> None:
    require(instruction)
    q = codes(shape, seed)
    _, real = windows(q, shape, 0.0)
    covered = real.sum(axis=0)[..., 0].reshape(-1)
    divisor = np.full_like(covered, len(real)) if count_padding else covered
    result = execute(
        pooling.average_pool(shape, "uint8", count_padding),
        instruction,
        q,
        (source.scale / (divisor * out.scale)).astype(np.float32),
        (-source.zero_point * covered).astype(np.int32),
        np.array([source.zero_point, out.zero_point], np.int32),
    )
    expected = quantized_average(q, shape, source, out, count_padding).reshape(shape.rows, -1)
    np.testing.assert_array_equal(result, expected, strict=True)


@INSTRUCTIONS
@pytest.mark.parametrize("count_padding", [False, True])
@EXAMPLES
@given(shape=shapes(), seed=SEEDS)
def test_float_average_pool(
    instruction: str, count_padding: bool, shape: ConvolutionShape, seed: int
) -> None:
    require(instruction)
    x = codes(shape, seed).astype(np.float32) + 1
    result = execute(pooling.average_pool(shape, "float32", count_padding), instruction, x)
    taps, real = windows(x, shape, 0.0)
    divisor = len(real) if count_padding else real.sum(axis=0)
    expected = (taps.sum(axis=0) / divisor).reshape(shape.rows, -1)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


@INSTRUCTIONS
@EXAMPLES
@given(
    batch=st.integers(1, 3),
    plane=st.sampled_from([1, 2, 7, 49, 64, 196, 1000]),
    channels=st.integers(1, 70),
    source=GRIDS,
    out=GRIDS,
    seed=SEEDS,
)
def test_global_average_pool(
    instruction: str, batch: int, plane: int, channels: int, source: Grid, out: Grid, seed: int
) -> None:
    require(instruction)
    q = np.random.default_rng(seed).integers(0, 256, (batch, 1, plane, channels)).astype(np.uint8)
    result = execute(
        pooling.global_average_pool(batch, plane, channels, "uint8"),
        instruction,
        q,
        np.array([source.scale / (plane * out.scale)]).astype(np.float32),
        np.array([-source.zero_point * plane], np.int32),
        np.array([source.zero_point, out.zero_point], np.int32),
    )
    shape = ConvolutionShape(batch, 1, plane, channels, channels, (1, plane))
    expected = quantized_average(q, shape, source, out, False).reshape(batch, channels)
    np.testing.assert_array_equal(result, expected, strict=True)
    x = (q.astype(np.float32) - 100) * np.float32(source.scale)
    result = execute(pooling.global_average_pool(batch, plane, channels, "float32"), instruction, x)
    expected = x.astype(np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-4 * source.scale)
