"""Every weighted integer kernel against NumPy integer arithmetic, bit for bit, on each instruction set there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_runner import TARGETS, require, run
from reference import quantized_convolution

from tvm_mpq.kernels.convolution import ConvolutionShape, Output, convolution
from tvm_mpq.kernels.intrinsic import Intrinsic, words_that_fit
from tvm_mpq.kernels.schedule_convolution import schedule_convolution
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.tiles import default_convolution_tile
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.int16_sums import SUM_WORDS, fit_sums, fitting_words
from tvm_mpq.quantization.packing import pack_channels, pack_depthwise, pack_factors, pack_weights

EXAMPLES = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@st.composite
def shapes(draw: st.DrawFn, depthwise: bool = False) -> ConvolutionShape:
    kernel = (draw(st.sampled_from([1, 2, 3, 5, 7])), draw(st.sampled_from([1, 2, 3, 5, 7])))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = tuple(draw(st.integers(0, 3)) for _ in range(4))
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    least = [max(1, reach[axis] - padding[axis] - padding[axis + 2]) for axis in (0, 1)]
    height, width = (draw(st.integers(extent, extent + 9)) for extent in least)
    channels = draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8, 12, 16, 19, 24, 33, 40]))
    if depthwise:
        channels += channels == 1
        groups, multiplier = channels, draw(st.sampled_from([1, 1, 1, 2, 3]))
        outputs = channels * multiplier
    else:
        groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
        channels *= groups
        outputs = groups * draw(st.sampled_from([1, 3, 4, 8, 10, 16, 17, 24, 40, 48]))
    return ConvolutionShape(
        draw(st.integers(1, 3)),
        height,
        width,
        channels,
        outputs,
        kernel,
        (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        padding,
        dilation,
        groups,
    )


def _data(shape: ConvolutionShape, seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 256, (shape.batch, shape.height, shape.width, shape.in_channels)).astype(np.uint8)
    size = (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)
    codes = rng.choice(np.array([-127, -1, 0, 3, 100, 127], np.int8), size)
    codes = np.where(rng.random(size) < 0.5, codes, rng.integers(-127, 128, size)).astype(np.int8)
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    reduction = codes[0].size
    spread = np.float32(2e-2 / np.sqrt(reduction))
    multiplier = (rng.random(shape.out_channels) * spread).astype(np.float32) + np.float32(1e-6)
    return q, codes, bias, multiplier


@pytest.mark.parametrize("instruction", list(TARGETS))
@EXAMPLES
@given(shape=shapes(), zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)), seed=st.integers(0, 99))
def test_convolution(instruction: str, shape: ConvolutionShape, zeros: tuple[int, int], seed: int) -> None:
    require(instruction)
    q, codes, bias, multiplier = _data(shape, seed)
    spec = KernelSpec("conv2d", shape, "uint8", Output("uint8"), instruction)
    row = spec.row
    folded = fold_zero_point(bias, codes, zeros[0]) if row.activation == "uint8" else bias
    out = run(
        spec.schedule(),
        instruction,
        q.reshape(-1, shape.in_channels),
        pack_weights(codes, shape.groups, row.lanes, row.group),
        pack_channels(folded, shape.groups, row.lanes),
        pack_channels(multiplier, shape.groups, row.lanes),
        np.array(zeros, np.int32),
    )
    np.testing.assert_array_equal(
        out, quantized_convolution(q, codes, bias, multiplier, zeros, shape), strict=True
    )


@pytest.mark.parametrize("instruction", list(TARGETS))
@EXAMPLES
@given(
    shape=shapes(),
    bits=st.integers(2, 8),
    weight_group=st.sampled_from([0, 0, 8, 16, 32, 12]),
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    seed=st.integers(0, 99),
)
def test_narrow_weights(
    instruction: str,
    shape: ConvolutionShape,
    bits: int,
    weight_group: int,
    zeros: tuple[int, int],
    seed: int,
) -> None:
    """Codes of few bits, codes whose sums were made to fit, and groups of codes with a common factor."""
    require(instruction)
    largest = 2 ** (bits - 1) - 1
    q, codes, bias, multiplier = _data(shape, seed)
    rng = np.random.default_rng(seed)
    # Extreme codes on extreme activations: a sum that saturates would show.
    codes = np.where(
        rng.random(codes.shape) < 0.5, np.sign(codes) * largest, np.clip(codes, -largest, largest)
    )
    codes = codes.astype(np.int8)
    q[rng.random(q.shape) < 0.5] = 255
    if bits in SUM_WORDS and not weight_group:
        codes = fit_sums(codes, codes, SUM_WORDS[bits])
    multiplied, factors = codes, None
    if weight_group:
        count = -(-shape.run // weight_group)
        factors = rng.integers(1, 127 // largest + 1, (shape.out_channels, shape.kernel[0], count)).astype(
            np.int8
        )
        multiplied = _multiply(codes, factors, weight_group)
    spec = KernelSpec(
        "conv2d",
        shape,
        "uint8",
        Output("uint8"),
        instruction,
        bits,
        weight_group,
        fitting_words(multiplied),
    )
    row = spec.row
    kept = codes if row.multiplied else multiplied
    weights = [pack_weights(kept, shape.groups, row.lanes, row.group, row.words, row.nibbles)]
    if row.multiplied:
        assert factors is not None
        weights.append(pack_factors(factors, shape.groups, row.lanes))
    folded = fold_zero_point(bias, multiplied, zeros[0]) if row.activation == "uint8" else bias
    out = run(
        spec.schedule(),
        instruction,
        q.reshape(-1, shape.in_channels),
        *weights,
        pack_channels(folded, shape.groups, row.lanes),
        pack_channels(multiplier, shape.groups, row.lanes),
        np.array(zeros, np.int32),
    )
    np.testing.assert_array_equal(
        out, quantized_convolution(q, multiplied, bias, multiplier, zeros, shape), strict=True
    )


def _multiply(codes: np.ndarray, factors: np.ndarray, weight_group: int) -> np.ndarray:
    o, i, r, s = codes.shape
    rows = codes.transpose(0, 2, 3, 1).reshape(o, r, s * i)
    rows = rows * np.repeat(factors, weight_group, axis=2)[:, :, : s * i]
    return rows.reshape(o, r, s, i).transpose(0, 3, 1, 2).astype(np.int8)


@pytest.mark.parametrize("bits", range(2, 8))
def test_int16_sums_hold_just_as_many_words_as_are_added(bits: int) -> None:
    worst = 2 * 255 * (2 ** (bits - 1) - 1)
    assert words_that_fit(bits) * worst <= 32767 < (words_that_fit(bits) + 1) * worst


@EXAMPLES
@given(shape=shapes(), zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)), seed=st.integers(0, 99))
def test_convolution_on_unshifted_activations(
    shape: ConvolutionShape, zeros: tuple[int, int], seed: int
) -> None:
    """The layout and the zero-point arithmetic of the VNNI rows, with portable code in the instruction's place."""
    q, codes, bias, multiplier = _data(shape, seed)
    row = Intrinsic("portable", "uint8", "int8", "int32", 8, 4, 16)
    in_place = shape.in_channels % row.group == 0 and shape.is_plain_matrix()
    tile = default_convolution_tile(shape, row, in_place)
    definition = convolution(shape, "uint8", Output("uint8"), row, tile.rows)
    out = run(
        schedule_convolution(definition, shape, row, tile),
        "generic",
        q.reshape(-1, shape.in_channels),
        pack_weights(codes, shape.groups, row.lanes, row.group),
        pack_channels(fold_zero_point(bias, codes, zeros[0]), shape.groups, row.lanes),
        pack_channels(multiplier, shape.groups, row.lanes),
        np.array(zeros, np.int32),
    )
    np.testing.assert_array_equal(
        out, quantized_convolution(q, codes, bias, multiplier, zeros, shape), strict=True
    )


@pytest.mark.parametrize("instruction", list(TARGETS))
@EXAMPLES
@given(
    shape=shapes(depthwise=True),
    zeros=st.tuples(st.integers(0, 255), st.integers(0, 255)),
    seed=st.integers(0, 99),
)
def test_depthwise(instruction: str, shape: ConvolutionShape, zeros: tuple[int, int], seed: int) -> None:
    require(instruction)
    q, codes, bias, multiplier = _data(shape, seed)
    out = run(
        KernelSpec("depthwise", shape, "uint8", Output("uint8"), instruction).schedule(),
        instruction,
        q.reshape(-1, shape.in_channels),
        pack_depthwise(codes),
        fold_zero_point(bias, codes, zeros[0]),
        multiplier,
        np.array(zeros, np.int32),
    )
    np.testing.assert_array_equal(
        out, quantized_convolution(q, codes, bias, multiplier, zeros, shape), strict=True
    )


@pytest.mark.parametrize("instruction", list(TARGETS))
@EXAMPLES
@given(
    rows=st.integers(1, 70),
    channels=st.integers(1, 70),
    outputs=st.integers(1, 70),
    zero=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_matrix_multiplication_to_float(
    instruction: str, rows: int, channels: int, outputs: int, zero: int, seed: int
) -> None:
    require(instruction)
    shape = ConvolutionShape(rows, 1, 1, channels, outputs)
    q, codes, bias, multiplier = _data(shape, seed)
    spec = KernelSpec("matmul", shape, "uint8", Output("float32"), instruction)
    row = spec.row
    folded = fold_zero_point(bias, codes, zero) if row.activation == "uint8" else bias
    out = run(
        spec.schedule(),
        instruction,
        q.reshape(rows, channels),
        pack_weights(codes, 1, row.lanes, row.group),
        pack_channels(folded, 1, row.lanes),
        pack_channels(multiplier, 1, row.lanes),
        np.array([zero, 0], np.int32),
    )
    acc = (q.reshape(rows, channels).astype(np.int64) - zero) @ codes[:, :, 0, 0].astype(np.int64).T + bias
    np.testing.assert_array_equal(out, acc.astype(np.int32).astype(np.float32) * multiplier, strict=True)
