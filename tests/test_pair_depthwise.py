"""Depthwise convolution by products of row pairs against NumPy integer arithmetic, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import require, run
from reference import half_extreme, quantized_convolution

from tvm_mpq.cost.work import kernel_work
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.depthwise import DepthwiseTile
from tvm_mpq.kernels.pair_depthwise_tile import PairDepthwiseTile, pair_lanes
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.packing import pack_depthwise

SAME = (1, 1, 1, 1)


def spec_of(shape: ConvolutionShape, out: str = "uint8", instruction: str = "avx2") -> KernelSpec:
    return KernelSpec("depthwise", shape, "uint8", Output(out), instruction)


@st.composite
def shapes(draw: st.DrawFn) -> ConvolutionShape:
    kernel = draw(st.sampled_from([(3, 3), (5, 5), (7, 7), (2, 3), (3, 1), (4, 2)]))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    least = [max(1, kernel[axis] - padding[axis] - padding[axis + 2]) for axis in (0, 1)]
    height, width = (draw(st.integers(extent, extent + 10)) for extent in least)
    channels = draw(st.sampled_from([16, 17, 24, 32, 40, 64]))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (1, 2), (3, 1), (4, 4)]))
    batch = draw(st.integers(1, 2))
    return ConvolutionShape(
        batch, height, width, channels, channels, kernel, stride, padding, groups=channels
    )


def check(spec: KernelSpec, tile: PairDepthwiseTile | None, zeros: tuple[int, int], seed: int) -> None:
    shape, rng = spec.shape, np.random.default_rng(seed)
    image = (shape.batch, shape.height, shape.width, shape.in_channels)
    filters = (shape.out_channels, 1, *shape.kernel)
    q = half_extreme(rng, 0, 255, image).astype(np.uint8)
    codes = half_extreme(rng, -127, 127, filters).astype(np.int8)
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    # Some results lie far outside of the output's grid, and of int16.
    multiplier = (rng.random(shape.out_channels) * rng.choice([2e-3, 1.0])).astype(np.float32)
    out = run(
        spec.schedule(tile),
        spec.instruction,
        q.reshape(-1, shape.in_channels),
        pack_depthwise(codes),
        fold_zero_point(bias, codes, zeros[0]),
        multiplier,
        np.array(zeros, np.int32),
    )
    expected = quantized_convolution(q, codes, bias, multiplier, zeros, shape, spec.out)
    np.testing.assert_array_equal(out, expected, strict=True)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    shape=shapes(),
    out=st.sampled_from([Output("uint8"), Output("uint8"), Output("float32"), Output("float32", 0.0, 6.0)]),
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    at=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_every_tile_gives_the_bytes_of_the_reference(
    shape: ConvolutionShape, out: Output, zeros: tuple[int, int], at: float, seed: int
) -> None:
    require("avx2")
    spec = replace(spec_of(shape), out=out)
    tiles = spec.space()
    tile = tiles[int(at * len(tiles))]
    assert isinstance(tile, PairDepthwiseTile)
    check(spec, tile, zeros, seed)


@pytest.mark.parametrize("instruction", ["avx2", "avxvnni", "avx512", "avx512vnni"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_default_tiles(instruction: str, kernel: int, stride: int) -> None:
    require(instruction)
    shape = ConvolutionShape(2, 13, 15, 72, 72, (kernel,) * 2, (stride,) * 2, (0, 1, 2, 2), groups=72)
    check(spec_of(shape, instruction=instruction), None, (117, 3), 0)


def test_where_there_is_such_a_kernel() -> None:
    shape = ConvolutionShape(1, 8, 8, 32, 32, (3, 3), (1, 1), SAME, groups=32)
    assert (pair_lanes(shape, 16), pair_lanes(shape, 8)) == (16, 8)
    for channels, lanes in ((48, 8), (144, 16), (31, 8), (16, 8), (15, None), (8, None)):
        assert pair_lanes(replace(shape, in_channels=channels, out_channels=channels), 16) == lanes
    assert pair_lanes(replace(shape, dilation=(2, 1), padding=(2, 1, 2, 1)), 16) is None
    assert pair_lanes(replace(shape, out_channels=64), 16) is None
    assert pair_lanes(replace(shape, kernel=(1, 3)), 16) is None
    for instruction in ("generic", "neon"):
        assert isinstance(spec_of(shape, instruction=instruction).default_tile(), DepthwiseTile)
    assert isinstance(replace(spec_of(shape), in_dtype="float32").default_tile(), DepthwiseTile)


def test_work_counts_pairs_and_staging() -> None:
    shape = ConvolutionShape(1, 8, 8, 32, 32, (3, 3), (1, 1), SAME, groups=32)
    results = 8 * 8 * 32
    work = kernel_work(spec_of(shape))
    assert (work.name, work.macs, work.steps) == ("pmaddwd256", 9 * results, 2 * results * (12 + 1) / 2)
    strided = replace(shape, kernel=(5, 5), stride=(2, 2), padding=(1, 1, 2, 2))
    assert kernel_work(spec_of(strided)).steps == 2 * results / 4 * (30 + 4) / 2
    assert kernel_work(spec_of(shape, instruction="avx512vnni")).name == "pmaddwd512"
