"""Kernels with data and the bytes that NumPy's integers say they must write, for every instruction set.

A new kind of weighted kernel is a line in SPECS and, where its weights are packed another way, a branch in
``weighted``. Other kernels are functions in OTHERS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from reference import (
    convolve,
    half_extreme,
    quantized_average,
    quantized_convolution,
    quantized_sum,
    rescaled,
)
from tvm.tirx import PrimFunc

from tvm_mpq.kernels import elementwise, pooling
from tvm_mpq.kernels.convolution import ConvolutionShape, Output
from tvm_mpq.kernels.intrinsic import winograd_intrinsic
from tvm_mpq.kernels.quantize_planes import quantize_planes
from tvm_mpq.kernels.schedule_default import schedule_default
from tvm_mpq.kernels.spec import KernelSpec
from tvm_mpq.kernels.winograd import WinogradGeometry, default_winograd_tile
from tvm_mpq.quantization.addition import addition_factors
from tvm_mpq.quantization.bias import fold_zero_point
from tvm_mpq.quantization.grid import Grid
from tvm_mpq.quantization.half import to_half
from tvm_mpq.quantization.int16_sums import fitting_words
from tvm_mpq.quantization.packing import pack_channels, pack_depthwise, pack_factors, pack_weights
from tvm_mpq.quantization.weights import QuantizedWeights, largest_code
from tvm_mpq.quantization.winograd import pack_winograd
from tvm_mpq.transform.lower_weight_only import packed_constants

ZEROS = (117, 3)
"""The zero-points of input and output."""
SAME = (1, 1, 1, 1)


@dataclass(frozen=True)
class Case:
    """A kernel's arguments but for the output, and the output."""

    function: PrimFunc
    arguments: tuple[np.ndarray, ...]
    expected: np.ndarray


def _spec(
    family: str,
    shape: ConvolutionShape,
    dtype: str = "uint8",
    out: str | None = None,
    bits: int = 8,
    group: int = 0,
) -> KernelSpec:
    return KernelSpec(family, shape, dtype, Output(out or dtype), "", bits, group)


def _narrow(family: str, shape: ConvolutionShape, **weights: Any) -> KernelSpec:
    return replace(_spec(family, shape, "float32"), **weights)


SPECS: dict[str, KernelSpec] = {
    "1x1": _spec("conv2d", ConvolutionShape(1, 7, 9, 32, 64)),
    "1x1 of ragged channels": _spec("conv2d", ConvolutionShape(2, 5, 5, 19, 33)),
    "1x1 of half-wide channels": _spec("conv2d", ConvolutionShape(1, 6, 6, 24, 40)),
    "3x3 strided": _spec("conv2d", ConvolutionShape(1, 13, 12, 16, 48, (3, 3), (2, 2), SAME)),
    "3x3 of an image": _spec("conv2d", ConvolutionShape(1, 16, 15, 3, 32, (3, 3), (2, 2), (0, 0, 1, 1))),
    "5x7 of one channel": _spec("conv2d", ConvolutionShape(1, 9, 9, 1, 16, (5, 7), (1, 2), (2, 0, 1, 3))),
    "3x3 grouped and dilated": _spec(
        "conv2d", ConvolutionShape(2, 9, 8, 24, 48, (3, 3), (1, 1), (2, 2, 2, 1), (2, 2), groups=3)
    ),
    "3x3 of ragged groups": _spec(
        "conv2d", ConvolutionShape(1, 6, 7, 10, 14, (3, 3), (1, 1), SAME, groups=2)
    ),
    "3x3 of odd groups": _spec("conv2d", ConvolutionShape(1, 4, 4, 38, 32, (3, 3), (1, 1), SAME, groups=2)),
    "long sums": _spec("conv2d", ConvolutionShape(1, 2, 3, 2048, 16)),
    "1x1 of 4 bits": _spec("conv2d", ConvolutionShape(1, 6, 5, 64, 48), bits=4),
    "3x3 of 4 bits": _spec("conv2d", ConvolutionShape(1, 6, 7, 19, 33, (3, 3), (1, 1), SAME), bits=4),
    "1x1 of 4 bits in groups": _spec("conv2d", ConvolutionShape(1, 6, 5, 64, 48), bits=4, group=32),
    "3x3 of 2 bits in groups": _spec(
        "conv2d", ConvolutionShape(1, 7, 6, 24, 32, (3, 3), (2, 2), SAME), bits=2, group=12
    ),
    "depthwise 3x3": _spec("depthwise", ConvolutionShape(1, 9, 9, 32, 32, (3, 3), (1, 1), SAME, groups=32)),
    "depthwise 5x5 strided": _spec(
        "depthwise", ConvolutionShape(1, 11, 9, 19, 38, (5, 5), (2, 2), (2, 2, 2, 2), groups=19)
    ),
    "depthwise 5x5 of ragged channels": _spec(
        "depthwise", ConvolutionShape(1, 8, 11, 72, 72, (5, 5), (1, 1), (2, 1, 1, 2), groups=72)
    ),
    "depthwise 3x3 strided to float": _spec(
        "depthwise", ConvolutionShape(2, 9, 8, 48, 48, (3, 3), (2, 2), (0, 0, 1, 1), groups=48), out="float32"
    ),
    "matmul of one row": _spec("matmul", ConvolutionShape(1, 1, 1, 70, 48), out="float32"),
    "matmul of ragged channels": _spec("matmul", ConvolutionShape(33, 1, 1, 61, 21)),
    "matmul to float": _spec("matmul", ConvolutionShape(17, 1, 1, 64, 32), out="float32"),
    "one row by 4-bit codes": _spec("packed_rows", ConvolutionShape(1, 1, 1, 197, 150), bits=4),
    "three rows by 4-bit codes": _spec(
        "packed_rows", ConvolutionShape(3, 1, 1, 64, 21), out="float32", bits=4
    ),
    "two rows by 4-bit codes in groups": _spec(
        "packed_rows", ConvolutionShape(2, 1, 1, 130, 64), bits=4, group=32
    ),
    "winograd": _spec("winograd", ConvolutionShape(1, 9, 8, 32, 32, (3, 3), (1, 1), SAME)),
    "winograd of ragged channels": _spec(
        "winograd", ConvolutionShape(2, 5, 6, 17, 12, (3, 3), (1, 1), (0, 1, 1, 0))
    ),
    "winograd of 4 bits": _spec("winograd", ConvolutionShape(1, 5, 7, 35, 24, (3, 3), (1, 1), SAME), bits=4),
    "winograd 2x4": _spec("winograd", ConvolutionShape(1, 9, 8, 32, 32, (3, 3), (1, 1), SAME)),
    "winograd 2x4 of ragged channels": _spec(
        "winograd", ConvolutionShape(2, 5, 7, 17, 12, (3, 3), (1, 1), (0, 1, 1, 0))
    ),
    "winograd 2x4 of 4 bits": _spec(
        "winograd", ConvolutionShape(1, 5, 11, 35, 24, (3, 3), (1, 1), SAME), bits=4
    ),
    "float 1x1": _spec("conv2d", ConvolutionShape(1, 7, 9, 32, 64), "float32"),
    "float 3x3 strided": _spec("conv2d", ConvolutionShape(1, 13, 12, 5, 40, (3, 3), (2, 2), SAME), "float32"),
    "float depthwise": _spec(
        "depthwise", ConvolutionShape(1, 9, 9, 19, 19, (3, 3), (1, 1), SAME, groups=19), "float32"
    ),
    "float matmul": _spec("matmul", ConvolutionShape(9, 1, 1, 61, 33), "float32"),
    "float winograd": _spec("winograd", ConvolutionShape(1, 7, 8, 16, 24, (3, 3), (1, 1), SAME), "float32"),
    "4-bit codes, one row": _narrow(
        "weight_only", ConvolutionShape(1, 1, 1, 100, 37), weight_bits=4, weight_group=32
    ),
    "4-bit codes, some rows": _narrow("weight_only", ConvolutionShape(5, 1, 1, 64, 64), weight_bits=4),
    "4-bit codes, many rows": _narrow(
        "weight_only", ConvolutionShape(27, 1, 1, 101, 48), weight_bits=4, weight_group=64
    ),
    "2-bit codes, some rows": _narrow(
        "weight_only", ConvolutionShape(3, 1, 1, 70, 33), weight_bits=2, weight_group=32
    ),
    "2-bit codes, many rows": _narrow(
        "weight_only", ConvolutionShape(14, 1, 1, 96, 32), weight_bits=2, weight_group=32
    ),
    "float16 3x3": _narrow(
        "conv2d", ConvolutionShape(1, 6, 7, 5, 40, (3, 3), (2, 2), SAME), weight_dtype="float16"
    ),
    "bfloat16 3x3": _narrow(
        "conv2d", ConvolutionShape(1, 9, 8, 10, 48, (3, 3), (1, 1), SAME), weight_dtype="bfloat16"
    ),
    "bfloat16 matmul": _narrow("matmul", ConvolutionShape(9, 1, 1, 61, 33), weight_dtype="bfloat16"),
    "float16 depthwise": _narrow(
        "depthwise",
        ConvolutionShape(1, 7, 8, 24, 24, (3, 3), (1, 1), SAME, groups=24),
        weight_dtype="float16",
    ),
    "bfloat16 winograd": _narrow(
        "winograd", ConvolutionShape(1, 7, 8, 16, 24, (3, 3), (1, 1), SAME), weight_dtype="bfloat16"
    ),
    "int8 winograd of floats": _narrow(
        "winograd", ConvolutionShape(1, 7, 8, 16, 24, (3, 3), (1, 1), SAME), weight_dtype="int8"
    ),
    "int8 matmul of floats": _narrow("matmul", ConvolutionShape(3, 1, 1, 40, 24), weight_dtype="int8"),
}

ACROSS = {"winograd 2x4": 4, "winograd 2x4 of ragged channels": 4, "winograd 2x4 of 4 bits": 4}
"""How many outputs wide the tiles of a Winograd kernel are, if not two."""


def cases(instruction: str) -> dict[str, Case]:
    """Every case that there is on ``instruction``."""
    specs = {name: replace(spec, instruction=instruction) for name, spec in SPECS.items()}
    return {
        **{name: weighted(spec, ACROSS.get(name, 2)) for name, spec in specs.items() if exists(spec)},
        **{name: make() for name, make in OTHERS.items()},
    }


def exists(spec: KernelSpec) -> bool:
    """Whether the instruction set has the family: byte instructions have no integer Winograd."""
    return spec.family != "winograd" or winograd_intrinsic(spec.instruction, spec.in_dtype) is not None


def weighted(spec: KernelSpec, across: int = 2) -> Case:
    """A kernel with weights, of which half and of the activations half are extreme."""
    shape = spec.shape
    tile = None
    if spec.family == "winograd":
        tile = default_winograd_tile(WinogradGeometry(shape, spec.row, across))
    rng = np.random.default_rng(len(spec.name))
    image = (shape.batch, shape.height, shape.width, shape.in_channels)
    filters = (shape.out_channels, shape.in_channels // shape.groups, *shape.kernel)
    if spec.family == "weight_only":
        return packed_codes(spec)
    if spec.in_dtype == "float32":
        # Small integers: exact in any order of summation, and times Winograd's factors.
        x, w = rng.integers(-9, 10, image), rng.integers(-9, 10, filters)
        bias = rng.integers(-50, 50, shape.out_channels)
        sums = (convolve(x, w, shape) + bias).reshape(shape.rows, -1).astype(np.float32)
        values = [w.astype(np.float32), bias.astype(np.float32)]
        if spec.weight_dtype == "int8":
            values = [w.astype(np.int8), values[1], np.ones(shape.out_channels, np.float32)]
        elif spec.weight_dtype != "float32":
            values[0] = to_half(values[0], spec.weight_dtype)
        return Case(spec.schedule(tile), (_rows(x.astype(np.float32)), *_pack(spec, *values)), sums)
    most = 2 ** (spec.weight_bits - 1) - 1
    q = half_extreme(rng, 0, 255, image).astype(np.uint8)
    codes, factors = half_extreme(rng, -most, most, filters).astype(np.int8), None
    multiplied = codes
    if spec.weight_group:
        count = -(-shape.run // spec.weight_group)
        size = (shape.out_channels, shape.kernel[0], count)
        factors = rng.integers(1, 127 // most + 1, size).astype(np.int8)
        multiplied = multiply_groups(codes, factors, spec.weight_group)
    spec = replace(spec, int16_words=fitting_words(multiplied))
    if not spec.row.multiplied:
        codes, factors = multiplied, None
    bias = rng.integers(-5000, 5000, shape.out_channels).astype(np.int32)
    spread = 1.0 / (127 if spec.weight_group else most)
    multiplier = rng.random(shape.out_channels) * (spread / np.sqrt(codes[0].size)) + 1e-6
    multiplier = multiplier.astype(np.float32)
    unshifted = spec.family == "depthwise" or spec.row.activation == "uint8"
    folded = fold_zero_point(bias, multiplied, ZEROS[0] - spec.input_offset) if unshifted else bias
    arguments = (
        _rows(q),
        *_pack(spec, codes, folded, multiplier, factors=factors),
        np.array(ZEROS, np.int32),
    )
    expected = quantized_convolution(q, multiplied, bias, multiplier, ZEROS, shape, spec.out)
    return Case(spec.schedule(tile), arguments, expected)


def packed_codes(spec: KernelSpec) -> Case:
    """A multiplication of floats by packed codes; small integers again."""
    shape, rng = spec.shape, np.random.default_rng(spec.weight_bits)
    limit = largest_code(spec.weight_bits)
    codes = rng.integers(-limit, limit + 1, (shape.out_channels, shape.in_channels, 1, 1)).astype(np.int8)
    scale, multiplier = np.ones(shape.out_channels, np.float32), None
    if spec.weight_group:
        count = -(-shape.in_channels // spec.weight_group)
        multiplier = rng.integers(1, 19, (shape.out_channels, count)).astype(np.uint8)
    weights = QuantizedWeights(codes, scale, spec.weight_bits, multiplier, spec.weight_group)
    x = rng.integers(-9, 10, (shape.rows, shape.in_channels))
    bias = rng.integers(-50, 50, shape.out_channels)
    sums = (x @ weights.int8[:, :, 0, 0].astype(np.int64).T + bias).astype(np.float32)
    constants = packed_constants(weights, bias.astype(np.float32), spec)
    return Case(spec.schedule(), (x.astype(np.float32), *constants), sums)


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def multiply_groups(codes: np.ndarray, factors: np.ndarray, group: int) -> np.ndarray:
    """The int8 codes that codes in groups of a common factor stand for."""
    o, i, r, s = codes.shape
    rows = codes.transpose(0, 2, 3, 1).reshape(o, r, s * i)
    rows = rows * np.repeat(factors, group, axis=2)[:, :, : s * i]
    return rows.reshape(o, r, s, i).transpose(0, 3, 1, 2).astype(np.int8)


def _pack(
    spec: KernelSpec, weights: np.ndarray, *each: np.ndarray, factors: np.ndarray | None = None
) -> list[np.ndarray]:
    """The weights, and what there is for each output channel, as the kernel reads them."""
    if spec.family == "depthwise":
        return [pack_depthwise(weights), *each]
    row, groups = spec.row, spec.shape.groups
    if spec.family == "winograd":
        tiled = WinogradGeometry(spec.shape, row)
        packed = pack_winograd(weights, tiled.channels, tiled.block, row.group, row.nibbles)
        return [packed, *(pack_channels(values, 1, tiled.block) for values in each)]
    packed = [pack_weights(weights, groups, row.lanes, row.group, row.words, row.nibbles)]
    if factors is not None:
        packed.append(pack_factors(factors, groups, row.lanes))
    return [*packed, *(pack_channels(values, groups, row.lanes) for values in each)]


SOURCE, OTHER, OUT = (
    Grid(float(np.float32(scale)), zero) for scale, zero in ((0.05, 117), (0.013, 3), (0.06, 140))
)


def _codes(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape).astype(np.uint8)


def _float32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def _int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def quantize_case(
    shape: tuple[int, ...] = (2, 5, 6, 7), make: Callable[..., PrimFunc] = elementwise.quantize_to_pixels
) -> Case:
    """An image's pixels, some of them exactly between two codes, far outside, infinite."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random(shape) < 0.5, rng.normal(0, 150, shape), rng.integers(-300, 300, shape) + 0.5)
    x = np.where(
        rng.random(shape) < 0.1, rng.choice([np.inf, -np.inf, 3e38, -1e-40], shape), x * SOURCE.scale
    )
    x = x.astype(np.float32)
    kernel = schedule_default(make(shape))
    arguments = (x, _float32(SOURCE.inverse_scale), _int32(0, SOURCE.zero_point))
    return Case(kernel, arguments, _rows(SOURCE.quantize(x).transpose(0, 2, 3, 1)))


def dequantize_case() -> Case:
    """Codes to real numbers."""
    q = _codes(3, 47)
    kernel = schedule_default(elementwise.dequantize_tensor(q.shape))
    return Case(kernel, (q, _float32(SOURCE.scale), _int32(SOURCE.zero_point, 0)), SOURCE.dequantize(q))


def add_case() -> Case:
    """Two tensors on different grids."""
    a, b = _codes(41, 19), _codes(41, 19)[::-1].copy()
    factors, multiplier = addition_factors(SOURCE, OTHER, OUT)
    kernel = schedule_default(elementwise.add(a.shape, Output("uint8")))
    arguments = (a, b, factors, _float32(multiplier), _int32(0, OUT.zero_point))
    return Case(kernel, arguments, quantized_sum(a, b, (SOURCE, OTHER), OUT))


def rescale_case() -> Case:
    """From one grid to another."""
    q = _codes(5, 7, 9)
    kernel = schedule_default(elementwise.rescale(q.shape))
    arguments = (q, _float32(SOURCE.scale / OUT.scale), _int32(SOURCE.zero_point, OUT.zero_point))
    return Case(kernel, arguments, rescaled(q, SOURCE, OUT))


def average_pool_case() -> Case:
    """Windows that reach into the padding."""
    shape = ConvolutionShape(1, 7, 8, 19, 19, (3, 2), (2, 1), (1, 0, 1, 1))
    q = _codes(1, 7, 8, 19)
    area = np.pad(np.ones((7, 8)), ((1, 1), (0, 1)))
    covered = np.lib.stride_tricks.sliding_window_view(area, (3, 2))[::2].sum(axis=(2, 3)).reshape(-1)
    kernel = schedule_default(pooling.average_pool(shape, "uint8", False))
    multiplier = (SOURCE.scale / (covered * OUT.scale)).astype(np.float32)
    offset = (-SOURCE.zero_point * covered).astype(np.int32)
    arguments = (_rows(q), multiplier, offset, _int32(SOURCE.zero_point, OUT.zero_point))
    return Case(kernel, arguments, _rows(quantized_average(q, shape, SOURCE, OUT, False)))


def max_pool_case() -> Case:
    """Windows over one another."""
    shape = ConvolutionShape(1, 9, 9, 40, 40, (3, 3), (2, 2))
    q = _codes(1, 9, 9, 40)
    windows = np.lib.stride_tricks.sliding_window_view(q, (3, 3), axis=(1, 2))[:, ::2, ::2]
    kernel = schedule_default(pooling.max_pool(shape, "uint8"))
    return Case(kernel, (_rows(q),), _rows(windows.max(axis=(4, 5))))


OTHERS: dict[str, Callable[[], Case]] = {
    "quantize": quantize_case,
    "quantize planes": lambda: quantize_case((2, 3, 2, 37), quantize_planes),
    "dequantize": dequantize_case,
    "add": add_case,
    "rescale": rescale_case,
    "average pool": average_pool_case,
    "max pool": max_pool_case,
}
